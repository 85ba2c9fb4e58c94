"""A push: what is sent, what is taken from the device, what stays whatever happens."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest

from mobiedit.device.errors import DeviceError, TransportError
from mobiedit.device.layout import BundlePlace, layout_at
from mobiedit.device.push import PushConfig, push_bundle
from mobiedit.device.transport import Completed
from mobiedit.runtime.errors import BundleError, JournalError
from tests.device.local_transport import Cut, LocalTransport
from tests.device.small_bundle import FILES, edits_of, journal_of, require_whole, state_of, teach, write_bundle

CHANGED = {**FILES, "prefix.onnx": b"another prefix", "new.bin": b"new"}


class Recording(LocalTransport):
    """Notes what is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []

    def push(self, source: Path, target: str, *, timeout: float = 3600.0) -> None:
        self.sent.append(source.name)
        super().push(source, target, timeout=timeout)


@pytest.fixture
def place(tmp_path: Path) -> BundlePlace:
    """A place on a device whose root is not there yet."""
    return layout_at(str(tmp_path / "device" / "root")).bundle("a bundle")


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A bundle of the host."""
    return write_bundle(tmp_path / "a bundle")


def current(place: BundlePlace) -> Path:
    return (Path(place.folder) / "current").resolve()


def versions(place: BundlePlace) -> list[str]:
    return sorted(path.name for path in Path(place.versions).iterdir())


def left_behind(place: BundlePlace) -> list[str]:
    return sorted(path.name for path in Path(place.layout.root).iterdir() if path.name != "bundles")


def test_push_makes_the_bundle_current_when_device_has_nothing(place: BundlePlace, local: Path) -> None:
    transport = Recording()
    teach(local, "a")
    result = push_bundle(transport, place, local)
    assert require_whole(current(place)) == require_whole(local)
    assert edits_of(current(place)) == ["a"]
    assert sorted(transport.sent) == sorted([*FILES, "manifest.json"])
    assert (result.files.sent_files, result.previous, result.up_to_date, result.edits) == (5, None, False, 1)
    assert versions(place) == [result.version]
    assert left_behind(place) == []


def test_push_sends_only_what_changed_when_device_has_a_version(place: BundlePlace, local: Path) -> None:
    first = push_bundle(Recording(), place, local)
    write_bundle(local, CHANGED)
    transport = Recording()
    result = push_bundle(transport, place, local)
    assert sorted(transport.sent) == ["manifest.json", "new.bin", "prefix.onnx"]
    assert (result.previous, result.files.taken_files) == (first.version, 3)
    assert require_whole(current(place)) == require_whole(local)
    require_whole(Path(place.version(first.version)))


def test_push_sends_nothing_when_device_has_the_bundle(place: BundlePlace, local: Path) -> None:
    first = push_bundle(Recording(), place, local)
    teach(local, "a")
    transport = Recording()
    second = push_bundle(transport, place, local)
    assert (second.up_to_date, second.version, transport.sent) == (True, first.version, [])
    assert edits_of(current(place)) == ["a"]  # edits go over all the same


def test_push_keeps_one_previous_version_when_pushed_thrice(place: BundlePlace, local: Path) -> None:
    results = []
    for index in range(3):
        write_bundle(local, {**FILES, "prefix.onnx": bytes([index])})
        results.append(push_bundle(LocalTransport(), place, local))
    assert versions(place) == [results[1].version, results[2].version]


@pytest.mark.parametrize("linked", [True, False])
def test_push_sends_a_file_again_when_it_was_changed_on_the_device(
    place: BundlePlace, local: Path, tmp_path: Path, linked: bool
) -> None:
    """Also where hard links are refused, as on Android."""
    if not linked:
        (tmp_path / "ln").write_text(
            '#!/bin/sh\ncase $1 in -*) exec /bin/ln "$@";; esac; echo refused >&2; exit 1\n', encoding="utf-8"
        )
        (tmp_path / "ln").chmod(0o755)
    transport = LocalTransport(None if linked else tmp_path)
    push_bundle(transport, place, local)
    (current(place) / "suffix.onnx").write_bytes(b"damaged" * 100)
    result = push_bundle(transport, place, local)
    assert not result.up_to_date
    assert result.files.sent_files == 1
    require_whole(current(place))
    write_bundle(local, CHANGED)
    push_bundle(transport, place, local)
    require_whole(current(place))
    same = (current(place) / "suffix.onnx").stat().st_ino == (
        Path(place.version(versions(place)[0])) / "suffix.onnx"
    ).stat().st_ino
    assert same is linked


def count_calls(place: BundlePlace, local: Path) -> int:
    transport = Cut(LocalTransport(), 10**6, done=False)
    push_bundle(transport, place, local)
    return transport.calls


@pytest.mark.parametrize("done", [False, True], ids=["asked", "answered"])
def test_push_completes_when_an_earlier_one_was_cut_at_any_call(tmp_path: Path, local: Path, done: bool) -> None:
    """Whether the cut came before the device did what it was asked, or before it could say so."""
    teach(local, "home")
    root = tmp_path / "device"
    place = layout_at(str(root)).bundle("a bundle")
    push_bundle(LocalTransport(), place, local)
    teach(current(place), "away")
    before, before_files = tmp_path / "before", require_whole(current(place))
    shutil.copytree(root, before, symlinks=True)
    write_bundle(local, CHANGED)
    calls = count_calls(place, local)
    after_files = require_whole(local)
    assert calls > 12
    for at in range(calls):
        shutil.rmtree(root)
        shutil.copytree(before, root, symlinks=True)
        # Only the last call, which frees the lock, may fail without the push.
        with pytest.raises(TransportError) if at < calls - 1 else nullcontext():
            push_bundle(Cut(LocalTransport(), at, done=done), place, local)
        found = require_whole(current(place))
        assert found in (before_files, after_files)
        assert edits_of(current(place)) == ["home", "away"]
        push_bundle(LocalTransport(), place, local)
        assert require_whole(current(place)) == after_files
        assert edits_of(current(place)) == ["home", "away"]
        assert left_behind(place) == []
        assert len(versions(place)) == 2


def test_push_does_not_send_again_what_arrived_before_a_cut(place: BundlePlace, local: Path) -> None:
    calls = count_calls(layout_at(place.layout.root + "2").bundle("x"), local)
    most: list[int] = []
    for at in range(calls):
        shutil.rmtree(place.layout.root, ignore_errors=True)
        try:
            push_bundle(Cut(LocalTransport(), at, done=False), place, local)
        except TransportError:
            transport = Recording()
            push_bundle(transport, place, local)
            most.append(len(transport.sent))
    assert set(most) == {0, 1, 2, 3, 4, 5}
    assert most == sorted(most, reverse=True)


def test_push_refuses_when_a_local_file_was_changed(place: BundlePlace, local: Path) -> None:
    (local / "prefix.onnx").write_bytes(b"prefiy")
    with pytest.raises(BundleError, match=r"prefix\.onnx does not have the content"):
        push_bundle(LocalTransport(), place, local)
    assert not Path(place.layout.root).exists()


class Damaging(LocalTransport):
    """Changes a file on the way, so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def push(self, source: Path, target: str, *, timeout: float = 3600.0) -> None:
        super().push(source, target, timeout=timeout)
        if source.name == "suffix.onnx" and self.times:
            self.times -= 1
            Path(target).write_bytes(b"SUFFIX" * 1000)


def test_push_sends_a_file_again_when_it_arrived_damaged_once(place: BundlePlace, local: Path) -> None:
    assert push_bundle(Damaging(1), place, local).files.sent_files == 6
    require_whole(current(place))


def test_push_refuses_when_a_file_keeps_arriving_damaged(place: BundlePlace, local: Path) -> None:
    first = push_bundle(LocalTransport(), place, local)
    write_bundle(local, {**CHANGED, "suffix.onnx": b"other"})
    with pytest.raises(DeviceError, match=r"suffix\.onnx arrived with another SHA-256, 2 times: check the cable"):
        push_bundle(Damaging(9), place, local)
    assert current(place).name == first.version
    require_whole(current(place))
    push_bundle(LocalTransport(), place, local)
    assert require_whole(current(place)) == require_whole(local)


def test_push_merges_the_journals_when_both_sides_taught(place: BundlePlace, local: Path) -> None:
    push_bundle(LocalTransport(), place, local)
    teach(current(place), "away")
    teach(local, "home")
    write_bundle(local, CHANGED)
    assert push_bundle(LocalTransport(), place, local).edits == 2
    assert edits_of(current(place)) == ["away", "home"]


def test_push_refuses_when_slots_do_not_suffice_for_both(place: BundlePlace, local: Path) -> None:
    first = push_bundle(LocalTransport(), place, local)
    teach(current(place), "a", "b")
    teach(local, "c", "d")
    write_bundle(local, CHANGED)
    with pytest.raises(JournalError, match="to 4 gated edits for 3 slots: undo 1 of them"):
        push_bundle(LocalTransport(), place, local)
    assert current(place).name == first.version
    assert edits_of(current(place)) == ["a", "b"]


def test_push_refuses_another_base_when_the_device_has_edits(place: BundlePlace, local: Path) -> None:
    first = push_bundle(LocalTransport(), place, local)
    teach(current(place), "away")
    write_bundle(local, CHANGED, weights="b" * 64)
    with pytest.raises(DeviceError, match=r"holds 1 edits of another base.*pull them.*--drop-edits"):
        push_bundle(LocalTransport(), place, local)
    assert current(place).name == first.version
    assert push_bundle(LocalTransport(), place, local, PushConfig(drop_edits=True)).edits == 0
    assert edits_of(Path(place.version(first.version))) == ["away"]  # not lost yet


def test_push_takes_another_base_when_the_device_has_no_edits_in_force(place: BundlePlace, local: Path) -> None:
    push_bundle(LocalTransport(), place, local)
    teach(current(place), "away")
    journal_of(current(place)).append_undo("away")
    write_bundle(local, CHANGED, weights="b" * 64)
    assert not push_bundle(LocalTransport(), place, local).up_to_date


def test_push_refuses_a_damaged_journal_and_can_leave_it_behind(place: BundlePlace, local: Path) -> None:
    push_bundle(LocalTransport(), place, local)
    teach(current(place), "a", "b")
    journal = current(place) / "edits" / "journal"
    data = bytearray(journal.read_bytes())
    data[60] ^= 1
    journal.write_bytes(data)
    with pytest.raises(JournalError, match=r"the device's .*/edits/journal is damaged at byte 0"):
        push_bundle(LocalTransport(), place, local)
    assert push_bundle(LocalTransport(), place, local, PushConfig(drop_edits=True)).edits == 0


def test_push_carries_an_edit_that_ended_after_the_flip(place: BundlePlace, local: Path) -> None:
    """A runner that opened the former version commits to it."""
    first = push_bundle(LocalTransport(), place, local)
    write_bundle(local, CHANGED)
    push_bundle(LocalTransport(), place, local)
    teach(Path(place.version(first.version)), "late")
    push_bundle(LocalTransport(), place, local)
    assert edits_of(current(place)) == ["late"]


class Meanwhile(LocalTransport):
    """Does something just before the version becomes current."""

    def __init__(self, action: Callable[[], None]) -> None:
        super().__init__()
        self.action = action

    def run(self, words: Sequence[str], *, stdin: bytes = b"", timeout: float = 60.0) -> Completed:
        if any('mv -T "$folder/.current"' in word for word in words):
            self.action()
        return super().run(words, stdin=stdin, timeout=timeout)


def test_push_refuses_when_an_edit_was_made_meanwhile(place: BundlePlace, local: Path) -> None:
    first = push_bundle(LocalTransport(), place, local)
    write_bundle(local, CHANGED)
    with pytest.raises(DeviceError, match="an edit was made on the device meanwhile: try again"):
        push_bundle(Meanwhile(lambda: teach(current(place), "new")), place, local)
    assert current(place).name == first.version
    push_bundle(LocalTransport(), place, local)
    assert edits_of(current(place)) == ["new"]


def test_push_reads_past_a_torn_tail_when_the_device_lost_power(place: BundlePlace, local: Path) -> None:
    push_bundle(LocalTransport(), place, local)
    teach(current(place), "a", "b")
    journal = current(place) / "edits" / "journal"
    journal.write_bytes(journal.read_bytes()[:-7])
    write_bundle(local, CHANGED)
    push_bundle(LocalTransport(), place, local)
    assert state_of(current(place)).dropped_bytes == 0
    assert edits_of(current(place)) == ["a"]


def test_journal_on_the_device_is_private(place: BundlePlace, local: Path) -> None:
    teach(local, "a")
    push_bundle(LocalTransport(), place, local)
    assert (current(place) / "edits" / "journal").stat().st_mode & 0o777 == 0o600


def test_push_erases_what_the_host_forgot_from_every_version(place: BundlePlace, local: Path) -> None:
    teach(local, "secret", "kept")
    first = push_bundle(LocalTransport(), place, local)
    journal_of(local).forget("secret")
    write_bundle(local, CHANGED)
    push_bundle(LocalTransport(), place, local)
    assert current(place).name != first.version
    assert edits_of(current(place)) == ["kept"]
    assert edits_of(Path(place.version(first.version))) == ["kept"]
    journals = [path.read_bytes() for path in Path(place.folder).rglob("journal*")]
    assert len(journals) == 2
    assert not any(b"secret of" in journal for journal in journals)


def test_push_does_not_bring_back_what_the_device_forgot(place: BundlePlace, local: Path) -> None:
    teach(local, "secret", "kept")
    push_bundle(LocalTransport(), place, local)
    journal_of(current(place)).forget("secret")
    assert push_bundle(LocalTransport(), place, local).up_to_date
    assert edits_of(current(place)) == ["kept"]
