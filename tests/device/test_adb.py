"""Commands on a device, through the real adb client."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mobiedit.device.adb import AdbTransport, Retries
from mobiedit.device.adb_failures import NotReached
from mobiedit.device.errors import DeviceError, DeviceTimeout, TransportError
from mobiedit.runtime.errors import RequestError
from tests.device.conftest import QUICK, AdbDevice

WORDS = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20), max_size=4)


@pytest.mark.parametrize("code", [0, 1, 2, 37, 126, 127, 137, 255])
def test_the_exit_code_is_the_programs_when_it_ends_by_itself(adb_device: AdbDevice, code: int) -> None:
    assert adb_device.transport.run(["sh", "-c", f"exit {code}"]).code == code


def test_the_exit_code_names_the_signal_when_a_program_is_killed(adb_device: AdbDevice) -> None:
    assert adb_device.transport.run(["sh", "-c", "kill -9 $$"]).code == 137


def test_the_exit_code_is_127_when_there_is_no_such_program(adb_device: AdbDevice) -> None:
    completed = adb_device.transport.run(["no such program"])
    assert completed.code == 127
    assert b"not found" in completed.err


def test_the_streams_stay_apart_when_a_program_writes_to_both(adb_device: AdbDevice) -> None:
    completed = adb_device.transport.run(["sh", "-c", "printf out; printf err >&2; exit 4"])
    assert (completed.code, completed.out, completed.err) == (4, b"out", b"err")


# "~." behind a newline ends a session of adb's at a terminal.
@pytest.mark.parametrize("data", [b"", b"x", b"\n~.\r\n\4\32", bytes(range(256)) * 12_000], ids=len)
def test_every_byte_passes_when_a_program_repeats_its_input(adb_device: AdbDevice, data: bytes) -> None:
    completed = adb_device.transport.run(["cat"], stdin=data)
    assert completed.code == 0
    assert completed.out == data  # no newline is changed, no byte is lost
    assert completed.err == b""


def test_a_program_ends_when_it_leaves_its_input_unread(adb_device: AdbDevice) -> None:
    assert adb_device.transport.run(["true"], stdin=b"x" * 1_000_000).code == 0


# One device for all examples: nothing is left behind on it.
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=WORDS)
def test_words_reach_the_program_as_they_are_when_they_hold_anything(adb_device: AdbDevice, words: list[str]) -> None:
    completed = adb_device.transport.run(["printf", r"%s\0", *words, "; echo $(id) 'x\"\n-n"])
    assert completed.out == b"".join(word.encode() + b"\0" for word in [*words, "; echo $(id) 'x\"\n-n"])


def test_a_command_is_refused_when_it_is_longer_than_adb_takes(adb_device: AdbDevice) -> None:
    assert adb_device.transport.run(["printf", "%s", "x" * 50_000]).out == b"x" * 50_000
    with pytest.raises(RequestError, match="too long for adb"):
        adb_device.transport.run(["echo", "x" * 60_000])


def test_text_comes_at_once_when_a_program_is_streamed(adb_device: AdbDevice) -> None:
    out: list[bytes] = []

    def err(chunk: bytes) -> None:
        assert chunk == b" 1%"  # though it ends no line, and the program has not ended
        (adb_device.root / "go").touch()

    words = ["sh", "-c", 'printf " 1%%" >&2; until test -e go; do sleep 0.01; done; echo done; exit 7']
    assert adb_device.transport.stream(words, out.append, err, timeout=60) == 7
    assert b"".join(out) == b"done\n"


def test_a_command_times_out_when_it_takes_too_long(adb_device: AdbDevice) -> None:
    with pytest.raises(DeviceTimeout, match=r"within 0\.3 s"):
        adb_device.transport.run(["sleep", "60"], timeout=0.3)
    assert adb_device.transport.run(["echo", "on"]).out == b"on\n"


def test_a_command_times_out_when_the_device_falls_silent(adb_device: AdbDevice) -> None:
    adb_device.transport.run(["true"])
    adb_device.daemon.faults.stall_after(0)
    with pytest.raises(DeviceTimeout):
        adb_device.transport.run(["true"], timeout=0.5)


@pytest.mark.parametrize("after", range(12))
def test_a_command_runs_at_most_once_when_the_link_is_cut(adb_device: AdbDevice, after: int) -> None:
    adb_device.transport.run(["true"])
    adb_device.daemon.faults.cut_after(after)
    with suppress(TransportError):
        completed = adb_device.transport.run(["sh", "-c", "echo x >> count; echo out; exit 9"])
        assert (completed.code, completed.out) == (9, b"out\n")  # never a good end that was none, nor half its text
    adb_device.daemon.faults.cut_at = None
    assert adb_device.transport.run(["true"]).code == 0  # the link is back
    count = adb_device.root / "count"
    assert not count.exists() or count.read_text() == "x\n"


def test_a_broken_link_is_told_from_a_bad_end_when_a_program_runs(adb_device: AdbDevice) -> None:
    def cut(_: bytes) -> None:
        adb_device.daemon.cut()

    script = "touch begun; echo; until test -e go; do sleep 0.01; done"
    with pytest.raises(TransportError, match=r"the end of 'sh' on .* was not seen, it may go on") as broken:
        adb_device.transport.stream(["sh", "-c", script], cut, cut, timeout=60)
    assert not isinstance(broken.value, NotReached)
    assert (adb_device.root / "begun").exists()


def test_a_command_is_tried_again_when_the_device_comes_back(adb_device: AdbDevice) -> None:
    adb_device.daemon.vanish()
    with pytest.raises(NotReached):
        adb_device.transport.run(["true"])
    adb_device.daemon.come_back()
    assert adb_device.transport.run(["echo", "back"]).out == b"back\n"


def test_the_cause_is_named_when_a_serial_has_vanished(adb_device: AdbDevice) -> None:
    assert adb_device.transport.run(["true"]).code == 0
    adb_device.daemon.vanish()
    with pytest.raises(NotReached, match=f"{adb_device.daemon.serial}.*(not found|offline).*: check the device"):
        adb_device.transport.run(["true"])


def test_nothing_is_tried_twice_when_retries_are_off(adb_device: AdbDevice) -> None:
    transport = AdbTransport(adb_device.server.adb, "no-such-device", Retries(1, 60.0))
    begin = time.monotonic()
    with pytest.raises(NotReached, match="'no-such-device' not found"):
        transport.run(["true"])
    assert time.monotonic() - begin < 50  # the pause was not made


def test_a_device_is_refused_when_it_cannot_pass_exit_codes_on(make_device: Callable[..., AdbDevice]) -> None:
    device = make_device(connect=False)
    device.daemon.faults.features = ("cmd",)
    device.server.connect(device.daemon)
    with pytest.raises(DeviceError, match="no shell_v2") as refused:
        device.transport.run(["true"])
    assert not isinstance(refused.value, TransportError)


def test_a_command_is_not_tried_again_when_the_device_refuses_its_shell(adb_device: AdbDevice) -> None:
    adb_device.transport.run(["true"])
    adb_device.daemon.faults.refuse = ("shell",)
    before = adb_device.daemon.faults.messages
    with pytest.raises(TransportError, match="closed"):
        adb_device.transport.run(["true"])
    assert adb_device.daemon.faults.messages - before <= 3  # opened once, refused once
    assert QUICK.attempts > 1


def test_properties_are_the_tests_when_a_device_is_asked(adb_device: AdbDevice) -> None:
    adb_device.daemon.set_properties({"ro.soc.model": "SM8650", "ro.x": "a=b c"})
    run = adb_device.transport.run
    assert [run(["getprop", name]).out for name in ("ro.soc.model", "ro.x", "ro.none")] == [
        b"SM8650\n",
        b"a=b c\n",
        b"\n",
    ]
