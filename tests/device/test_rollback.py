"""Back to the version before, edits and all."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobiedit.device.errors import DeviceError, TransportError
from mobiedit.device.layout import BundlePlace, layout_at
from mobiedit.device.push import PushConfig, push_bundle
from mobiedit.device.rollback import rollback
from tests.device.local_transport import Cut, LocalTransport
from tests.device.small_bundle import FILES, edits_of, journal_of, require_whole, teach, write_bundle


@pytest.fixture
def place(tmp_path: Path) -> BundlePlace:
    """A bundle on a device in two versions, with an edit of before and one of behind the second push."""
    place = layout_at(str(tmp_path / "device")).bundle("b")
    push_bundle(LocalTransport(), place, write_bundle(tmp_path / "b"))
    teach(current(place), "first")
    push_bundle(LocalTransport(), place, write_bundle(tmp_path / "b", {**FILES, "prefix.onnx": b"second"}))
    teach(current(place), "second")
    return place


def current(place: BundlePlace) -> Path:
    return (Path(place.folder) / "current").resolve()


def test_rollback_brings_the_previous_version_back_with_every_edit(place: BundlePlace) -> None:
    newer = current(place).name
    journal_of(current(place)).append_undo("first")
    result = rollback(LocalTransport(), place)
    assert (current(place) / "prefix.onnx").read_bytes() == FILES["prefix.onnx"]
    assert edits_of(current(place)) == ["second"]
    assert (result.version, result.former, result.edits) == (current(place).name, newer, 1)
    require_whole(current(place))
    teach(current(place), "third")
    assert rollback(LocalTransport(), place).version == newer
    assert edits_of(current(place)) == ["second", "third"]


def test_rollback_refuses_when_there_is_one_version(tmp_path: Path) -> None:
    place = layout_at(str(tmp_path / "device")).bundle("b")
    version = push_bundle(LocalTransport(), place, write_bundle(tmp_path / "b")).version
    with pytest.raises(DeviceError, match=f"no version but {version}"):
        rollback(LocalTransport(), place)


def test_rollback_refuses_when_the_previous_version_was_changed(place: BundlePlace) -> None:
    newer = current(place)
    older = next(path for path in newer.parent.iterdir() if path != newer)
    (older / "prefix.onnx").write_bytes(b"changed")
    with pytest.raises(DeviceError, match=f"{older.name} is damaged on the device: push the bundle"):
        rollback(LocalTransport(), place)
    assert current(place) == newer


def test_rollback_refuses_another_base_unless_edits_may_stay_behind(place: BundlePlace, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "other", weights="c" * 64)
    push_bundle(LocalTransport(), place, other, PushConfig(drop_edits=True))
    teach(current(place), "another")
    with pytest.raises(DeviceError, match="1 edits of another base"):
        rollback(LocalTransport(), place)
    rollback(LocalTransport(), place, drop_edits=True)
    assert edits_of(current(place)) == ["first", "second"]


def test_rollback_leaves_a_whole_version_current_when_it_is_cut_at_any_call(place: BundlePlace) -> None:
    whole = Cut(LocalTransport(), 10**6, done=False)
    rollback(whole, place)
    for at in range(whole.calls - 1):
        with pytest.raises(TransportError):
            rollback(Cut(LocalTransport(), at, done=True), place)
        require_whole(current(place))
        assert edits_of(current(place)) == ["first", "second"]
    rollback(LocalTransport(), place)


def test_rollback_erases_what_was_forgotten_from_both_versions(place: BundlePlace) -> None:
    journal_of(current(place)).forget("first")
    rollback(LocalTransport(), place)
    assert edits_of(current(place)) == ["second"]
    journals = [path.read_bytes() for path in Path(place.folder).rglob("journal*")]
    assert len(journals) == 2
    assert not any(b"first of" in journal for journal in journals)
