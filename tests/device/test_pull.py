"""The edits come home."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mobiedit.device.errors import DeviceError, TransportError
from mobiedit.device.layout import BundlePlace, layout_at
from mobiedit.device.pull import pull_edits
from mobiedit.device.push import push_bundle
from mobiedit.runtime.errors import BusyError, JournalError
from mobiedit.runtime.lock import editing_lock
from mobiedit.runtime.manifest import read_manifest
from tests.device.local_transport import Cut, LocalTransport
from tests.device.small_bundle import FILES, edits_of, journal_of, make_edit, teach, write_bundle


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A bundle of the host with one edit."""
    folder = write_bundle(tmp_path / "b", slots=4)
    teach(folder, "both")
    return folder


@pytest.fixture
def place(tmp_path: Path, local: Path) -> BundlePlace:
    """The same bundle on a device."""
    place = layout_at(str(tmp_path / "device")).bundle("b")
    push_bundle(LocalTransport(), place, local)
    return place


def current(place: BundlePlace) -> Path:
    return (Path(place.folder) / "current").resolve()


def test_pull_brings_edits_and_undos_when_the_journal_grew_on_both_sides(place: BundlePlace, local: Path) -> None:
    teach(local, "home")
    teach(current(place), "old", created="1970-01-01T00:00:01+00:00")  # a clock that was never set
    teach(current(place), "away", created="2099-01-01T00:00:00+00:00")
    journal_of(current(place)).append_undo("both")
    result = pull_edits(LocalTransport(), place, local)
    assert edits_of(local) == ["home", "old", "away"]
    assert (result.new_edits, result.undone, result.edits) == (("old", "away"), ("both",), 3)
    again = pull_edits(LocalTransport(), place, local)
    assert (again.new_edits, again.undone, again.edits) == ((), (), 3)
    push_bundle(LocalTransport(), place, local)
    assert set(edits_of(current(place))) == {"home", "old", "away"}


def test_pull_leaves_an_edit_undone_when_the_host_undid_it(place: BundlePlace, local: Path) -> None:
    journal_of(local).append_undo("both")
    pull_edits(LocalTransport(), place, local)
    assert edits_of(local) == []


def test_pull_erases_an_edit_when_the_device_forgot_it(place: BundlePlace, local: Path) -> None:
    teach(current(place), "away")
    journal_of(current(place)).forget("both")
    result = pull_edits(LocalTransport(), place, local)
    assert (result.new_edits, result.forgotten, result.edits) == (("away",), ("both",), 1)
    assert b"both of" not in (local / "edits" / "journal").read_bytes()
    push_bundle(LocalTransport(), place, local)
    assert edits_of(current(place)) == ["away"]


def test_pull_tells_which_edits_the_devices_ones_replace(place: BundlePlace, local: Path) -> None:
    home, away = (
        replace(make_edit(name, read_manifest(local).edit_base), prompt="same {}") for name in ("home", "away")
    )
    journal_of(local).append_edits((home,))
    journal_of(current(place)).append_edits((away,))
    result = pull_edits(LocalTransport(), place, local)
    assert (result.new_edits, result.replaced, result.edits) == (("away",), ("home",), 2)
    assert edits_of(local) == ["both", "away"]


def test_pull_refuses_when_slots_do_not_suffice(place: BundlePlace, local: Path) -> None:
    teach(local, "1", "2")
    teach(current(place), "3", "4")
    with pytest.raises(JournalError, match="grew on both sides, to 5 gated edits for 4 slots"):
        pull_edits(LocalTransport(), place, local)
    assert edits_of(local) == ["both", "1", "2"]
    assert edits_of(current(place)) == ["both", "3", "4"]


def test_pull_refuses_another_base(place: BundlePlace, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "other", weights="b" * 64)
    with pytest.raises(DeviceError, match=r"another base \(small, edit layer 2\) than .*other"):
        pull_edits(LocalTransport(), place, other)
    assert edits_of(other) == []


def test_pull_takes_a_bundle_of_another_precision(place: BundlePlace, tmp_path: Path) -> None:
    """An edit belongs to weights, edit layer and sink token; how the graphs round is another matter."""
    other = write_bundle(tmp_path / "other", {**FILES, "prefix.onnx": b"other bits"})
    pull_edits(LocalTransport(), place, other)
    assert edits_of(other) == ["both"]


def test_pull_refuses_a_damaged_journal(place: BundlePlace, local: Path) -> None:
    teach(current(place), "x")
    journal = current(place) / "edits" / "journal"
    data = bytearray(journal.read_bytes())
    data[60] ^= 1
    journal.write_bytes(data)
    with pytest.raises(JournalError, match=r"the device's /.*/edits/journal is damaged at byte 0"):
        pull_edits(LocalTransport(), place, local)
    assert edits_of(local) == ["both"]


def test_pull_names_the_bundle_when_the_device_does_not_have_it(place: BundlePlace, local: Path) -> None:
    with pytest.raises(DeviceError, match=r"has no bundle 'other' below .*: push it first"):
        pull_edits(LocalTransport(), place.layout.bundle("other"), local)


def test_pull_refuses_when_the_bundle_is_being_edited_here(place: BundlePlace, local: Path) -> None:
    teach(current(place), "x")
    with editing_lock(local / "edits"), pytest.raises(BusyError):
        pull_edits(LocalTransport(), place, local)


def test_pull_writes_nothing_when_it_is_cut_at_any_call(place: BundlePlace, local: Path) -> None:
    teach(current(place), "x")
    whole = Cut(LocalTransport(), 10**6, done=False)
    before = (local / "edits" / "journal").read_bytes()
    calls = 2
    for at in range(calls):
        with pytest.raises(TransportError):
            pull_edits(Cut(LocalTransport(), at, done=True), place, local)
        assert (local / "edits" / "journal").read_bytes() == before
    pull_edits(whole, place, local)
    assert whole.calls == calls
    assert edits_of(local) == ["both", "x"]
