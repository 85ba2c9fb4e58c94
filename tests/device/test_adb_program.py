"""The adb program: found, called, ended."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mobiedit.device.adb_program import AdbProgram, find_adb
from mobiedit.device.errors import DeviceError, DeviceTimeout


@pytest.fixture
def script(tmp_path: Path) -> AdbProgram:
    """A program that does what its last argument says."""
    path = tmp_path / "adb"
    path.write_text('#!/bin/sh\nfor last; do :; done\neval "$last"\n')
    path.chmod(0o755)
    return AdbProgram(str(path))


def test_adb_is_found_when_it_is_on_the_path(
    script: AdbProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_adb() == script
    assert find_adb(script.path, server_port=5038) == AdbProgram(script.path, 5038)


def test_the_package_is_named_when_adb_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="install the package adb"):
        find_adb()
    with pytest.raises(DeviceError, match="no program 'adb-of-mine'"):
        find_adb("adb-of-mine")


def test_a_refusal_is_clear_when_the_program_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot be started"):
        AdbProgram(str(tmp_path)).call(["devices"])


def test_the_streams_stay_apart_when_both_are_written(script: AdbProgram) -> None:
    completed = script.call(["cat; echo err >&2; exit 3"], stdin=b"\0\xff\r\n")
    assert (completed.code, completed.out, completed.err) == (3, b"\0\xff\r\n", b"err\n")


def test_the_servers_port_comes_first_when_it_is_given(script: AdbProgram) -> None:
    assert AdbProgram(script.path, 99).call(["-x", 'echo "$1 $2 $3"']).out == b"-P 99 -x\n"


def test_it_is_killed_when_it_takes_too_long(script: AdbProgram, tmp_path: Path) -> None:
    with pytest.raises(DeviceTimeout, match=r"within 0\.2 s"):
        script.call([f"echo $$ > {tmp_path}/pid; exec sleep 60"], timeout=0.2)
    pid = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists()


def test_text_comes_before_the_end_when_the_program_goes_on(script: AdbProgram, tmp_path: Path) -> None:
    def go(chunk: bytes) -> None:
        assert chunk == b"first\n"
        (tmp_path / "go").touch()  # without it the program waits for good

    code = script.stream(
        [f"echo first; until test -e {tmp_path}/go; do sleep 0.01; done"], go, lambda _: None, timeout=60
    )
    assert code == 0


def test_the_program_is_ended_when_what_it_writes_cannot_be_taken(script: AdbProgram) -> None:
    def refuse(_: bytes) -> None:
        raise OSError("full")

    begin = time.monotonic()
    with pytest.raises(OSError, match="full"):
        script.stream(["echo x; exec sleep 60"], refuse, refuse, timeout=60)
    assert time.monotonic() - begin < 50  # it did not wait for the program's own end
