"""Files to and from a device, through the real adb client."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from mobiedit.device.adb import AdbTransport, Retries
from mobiedit.device.errors import DeviceError, DeviceTimeout, TransportError
from mobiedit.runtime.errors import RequestError, StorageError
from tests.device.conftest import AdbDevice

NAMES = ["plain", "a b", "it's", '"', ";", "$(touch owned)", "`id`", "a\nb", "-rf", "*", "ü", "a,b,33206", ".hidden"]


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_a_file_comes_and_goes_when_its_name_is_strange(adb_device: AdbDevice, tmp_path: Path, name: str) -> None:
    source, target = tmp_path / name, adb_device.root / name
    source.write_bytes(name.encode())
    adb_device.transport.push(source, str(target))
    assert target.read_bytes() == name.encode()
    assert listed(adb_device.root) == [name]
    source.unlink()
    adb_device.transport.pull(str(target), source)
    assert source.read_bytes() == name.encode()
    assert listed(tmp_path) == [name]


@pytest.mark.parametrize("size", [0, 1, 65_536, 5_000_000])
def test_a_file_is_the_same_when_it_was_there_and_back(adb_device: AdbDevice, tmp_path: Path, size: int) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(os.urandom(size))
    adb_device.transport.push(source, f"{adb_device.root}/x")
    adb_device.transport.pull(f"{adb_device.root}/x", back)
    assert back.read_bytes() == source.read_bytes()


def test_a_file_is_replaced_when_one_is_there(adb_device: AdbDevice, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("new")
    (adb_device.root / "x").write_text("old and longer")
    adb_device.transport.push(tmp_path / "x", f"{adb_device.root}/x")
    assert (adb_device.root / "x").read_text() == "new"
    (tmp_path / "x").write_text("old and longer")
    adb_device.transport.pull(f"{adb_device.root}/x", tmp_path / "x")
    assert (tmp_path / "x").read_text() == "new"


def test_a_link_is_replaced_and_not_followed_when_one_is_there(adb_device: AdbDevice, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("new")
    (adb_device.root / "other").write_text("other")
    (adb_device.root / "x").symlink_to("other")
    adb_device.transport.push(tmp_path / "x", f"{adb_device.root}/x")
    assert (adb_device.root / "other").read_text() == "other"
    assert not (adb_device.root / "x").is_symlink()


@pytest.mark.parametrize(("target", "reason"), [("none/x", "No such file"), ("folder", "it is a folder")])
def test_a_push_is_refused_when_the_target_is_wrong(
    adb_device: AdbDevice, tmp_path: Path, target: str, reason: str
) -> None:
    (tmp_path / "x").write_text("x")
    (adb_device.root / "folder").mkdir()
    with pytest.raises(DeviceError, match=reason) as refused:
        adb_device.transport.push(tmp_path / "x", f"{adb_device.root}/{target}")
    assert not isinstance(refused.value, TransportError)
    assert listed(adb_device.root) == ["folder"]
    assert listed(adb_device.root / "folder") == []


@pytest.mark.parametrize("size", [1_000, 2_000_000])
def test_a_push_is_refused_when_the_disk_is_full(adb_device: AdbDevice, tmp_path: Path, size: int) -> None:
    (tmp_path / "x").write_bytes(b"x" * size)
    (adb_device.root / "x").write_text("old")
    adb_device.daemon.faults.space = size - 1
    with pytest.raises(DeviceError, match=r"No space left on device.*: free some space") as refused:
        adb_device.transport.push(tmp_path / "x", f"{adb_device.root}/x")
    assert not isinstance(refused.value, TransportError)
    assert (adb_device.root / "x").read_text() == "old"
    assert listed(adb_device.root) == ["x"]


def test_nothing_is_asked_when_the_request_is_wrong(adb_device: AdbDevice, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    with pytest.raises(RequestError, match="is not a file"):
        adb_device.transport.push(tmp_path, f"{adb_device.root}/x")
    with pytest.raises(RequestError, match="not absolute"):
        adb_device.transport.push(tmp_path / "x", "x")
    with pytest.raises(RequestError, match="not absolute"):
        adb_device.transport.pull("x", tmp_path / "x")


@pytest.mark.parametrize("what", ["none", "folder"])
def test_a_pull_is_refused_when_there_is_no_such_file(adb_device: AdbDevice, tmp_path: Path, what: str) -> None:
    (adb_device.root / "folder").mkdir()
    (tmp_path / "x").write_text("old")
    with pytest.raises(DeviceError, match=f"has no file '.*{what}'") as refused:
        adb_device.transport.pull(f"{adb_device.root}/{what}", tmp_path / "x")
    assert not isinstance(refused.value, TransportError)
    assert (tmp_path / "x").read_text() == "old"
    assert listed(tmp_path) == ["x"]


def test_a_pull_is_refused_when_the_hosts_disk_refuses(
    adb_device: AdbDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")  # root may write everywhere

    (adb_device.root / "x").write_text("x")
    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(StorageError, match="permission denied"):
        adb_device.transport.pull(f"{adb_device.root}/x", tmp_path / "x")


def test_a_copy_times_out_when_the_device_falls_silent(adb_device: AdbDevice, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x" * 1_000_000)
    (adb_device.root / "y").write_text("y")
    adb_device.transport.run(["true"])
    adb_device.daemon.faults.stall_after(20)  # behind the command that looks for what was left behind
    with pytest.raises(DeviceTimeout, match=r"within 0\.5 s"):
        adb_device.transport.push(tmp_path / "x", f"{adb_device.root}/x", timeout=0.5)
    assert not (adb_device.root / "x").exists()


def test_a_damaged_file_is_seen_when_its_sum_is_taken(adb_device: AdbDevice, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"content")
    adb_device.daemon.faults.damage = True
    adb_device.transport.push(tmp_path / "x", f"{adb_device.root}/x")
    assert adb_device.transport.run(["cat", f"{adb_device.root}/x"]).out != b"content"


@pytest.mark.parametrize("direction", ["push", "pull"])
def test_a_copy_is_whole_when_the_link_is_cut_at_any_message(
    adb_device: AdbDevice, tmp_path: Path, direction: str
) -> None:
    content = os.urandom(200_000)  # four messages
    here, there = tmp_path / "x", adb_device.root / "x"
    faults = adb_device.daemon.faults

    def copy() -> None:
        (here if direction == "push" else there).write_bytes(content)
        (there if direction == "push" else here).write_bytes(b"old")
        if direction == "push":
            adb_device.transport.push(here, str(there))
        else:
            adb_device.transport.pull(str(there), here)

    for after in range(1_000):
        faults.cut_after(after)
        copy()  # one cut, so the second attempt succeeds
        assert here.read_bytes() == there.read_bytes() == content
        assert listed(adb_device.root) == listed(tmp_path) == ["x"]
        if faults.cut_at is not None:  # the copy was over before the cut
            break
        assert adb_device.transport.run(["true"]).code == 0  # a cut behind the copy's end is not the next one's
    assert 10 < after < 999


def test_the_target_is_old_or_new_when_the_only_attempt_is_cut_at_any_message(
    adb_device: AdbDevice, tmp_path: Path
) -> None:
    content = os.urandom(200_000)
    here, there = tmp_path / "x", adb_device.root / "x"
    here.write_bytes(content)
    once = AdbTransport(adb_device.server.adb, adb_device.daemon.serial, Retries(1))
    seen = set()
    for after in range(40):
        there.write_bytes(b"old")
        adb_device.daemon.faults.cut_after(after)
        with suppress(TransportError):
            once.push(here, str(there))
        seen.add(there.read_bytes())
        adb_device.daemon.faults.cut_at = None
        assert adb_device.transport.run(["true"]).code == 0  # connected again
    assert seen == {b"old", content}
    once.push(here, str(there))
    assert listed(adb_device.root) == ["x"]  # what the cuts left behind is gone


def test_each_push_has_a_file_of_its_own_until_it_is_whole(
    adb_device: AdbDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_bytes(b"new")
    copied: list[str] = []
    copy = AdbTransport._copy

    def watched(self: AdbTransport, words: list[str], what: str, timeout: float) -> None:
        copied.append(words[-1])
        copy(self, words, what, timeout)

    monkeypatch.setattr(AdbTransport, "_copy", watched)
    for _ in range(2):  # were it one name, an mv that runs late would take what is half there
        adb_device.transport.push(tmp_path / "x", f"{adb_device.root}/x")
    assert len(set(copied)) == 2
    assert listed(adb_device.root) == ["x"]


def test_the_target_is_old_or_new_when_every_attempt_is_cut(adb_device: AdbDevice, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"new" * 100_000)
    (adb_device.root / "x").write_text("old")
    adb_device.daemon.vanish()
    with pytest.raises(TransportError, match=": check the device"):
        adb_device.transport.push(tmp_path / "x", f"{adb_device.root}/x")
    with pytest.raises(TransportError, match=": check the device"):
        adb_device.transport.pull(f"{adb_device.root}/x", tmp_path / "x")
    assert (adb_device.root / "x").read_text() == "old"
    assert listed(tmp_path) == ["x"]
