"""What a device can do to a push: full disks, links, strange names."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mobiedit.device.errors import DeviceError, TransportError
from mobiedit.device.layout import BundlePlace, layout_at
from mobiedit.device.listing import list_device
from mobiedit.device.pull import pull_edits
from mobiedit.device.push import push_bundle
from mobiedit.device.remove import remove_bundle, remove_runner, remove_staged
from mobiedit.device.rollback import rollback
from mobiedit.runtime.errors import RequestError
from tests.device.local_transport import LocalTransport
from tests.device.small_bundle import FILES, edits_of, require_whole, teach, write_bundle

STRANGE = ["a b", "it's", 'a"b', "a;rm -rf x", "$(touch pwned)", "`x`", "-rf", "*", "ä ö", "a\\b", "~", "a&b|c>d", ".x"]
BIG = {**FILES, "head.onnx": bytes(range(256)) * 6000}


@pytest.fixture
def place(tmp_path: Path) -> BundlePlace:
    """A bundle on a device."""
    place = layout_at(str(tmp_path / "device")).bundle("b")
    push_bundle(LocalTransport(), place, write_bundle(tmp_path / "b"))
    return place


def current(place: BundlePlace) -> Path:
    return (Path(place.folder) / "current").resolve()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small file system can be mounted by root alone")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_push_says_what_is_missing_when_the_disk_is_full(small_disk: Path, tmp_path: Path) -> None:
    place = layout_at(str(small_disk / "root")).bundle("b")
    local = write_bundle(tmp_path / "b")
    teach(local, "a")
    push_bundle(LocalTransport(), place, local)
    before = require_whole(current(place))
    write_bundle(local, BIG)
    (small_disk / "ballast").write_bytes(bytes(2 * 2**20))
    with pytest.raises(DeviceError, match=r"disk is full: 2\.5 MiB are needed and \d\.\d MiB are free"):
        push_bundle(LocalTransport(), place, local)
    assert require_whole(current(place)) == before
    assert edits_of(current(place)) == ["a"]
    (small_disk / "ballast").unlink()
    push_bundle(LocalTransport(), place, local)
    assert require_whole(current(place)) == require_whole(local)
    assert edits_of(current(place)) == ["a"]


class Filling(LocalTransport):
    """Fills the disk while a file is sent."""

    def __init__(self, ballast: Path) -> None:
        super().__init__()
        self.ballast = ballast

    def push(self, source: Path, target: str, *, timeout: float = 3600.0) -> None:
        if source.name == "head.onnx":
            with self.ballast.open("wb") as file:
                free = os.statvfs(self.ballast.parent)
                file.write(bytes(free.f_bavail * free.f_frsize - 2**20))
        super().push(source, target, timeout=timeout)


def test_push_knows_a_full_disk_when_it_fills_up_meanwhile(small_disk: Path, tmp_path: Path) -> None:
    """Whatever the connection says then: this one blames itself."""
    place = layout_at(str(small_disk / "root")).bundle("b")
    local = write_bundle(tmp_path / "b")
    push_bundle(LocalTransport(), place, local)
    before = require_whole(current(place))
    write_bundle(local, BIG)
    with pytest.raises(DeviceError, match="disk is full") as told:
        push_bundle(Filling(small_disk / "ballast"), place, local)
    assert not isinstance(told.value, TransportError)
    assert require_whole(current(place)) == before
    (small_disk / "ballast").unlink()
    push_bundle(LocalTransport(), place, local)
    assert require_whole(current(place)) == require_whole(local)


def test_push_takes_no_lock_when_the_disk_has_no_byte_left(small_disk: Path, tmp_path: Path) -> None:
    place = layout_at(str(small_disk / "root")).bundle("b")
    local = write_bundle(tmp_path / "b")
    push_bundle(LocalTransport(), place, local)
    with suppress(OSError):
        (small_disk / "ballast").write_bytes(bytes(8 * 2**20))  # what fits is written
    write_bundle(local, BIG)
    with pytest.raises(DeviceError, match="the device's disk is full: free some space there"):
        push_bundle(LocalTransport(), place, local)
    (small_disk / "ballast").unlink()
    push_bundle(LocalTransport(), place, local)


@pytest.mark.parametrize("name", STRANGE)
def test_bundle_goes_and_comes_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    local = write_bundle(tmp_path / name)
    root = tmp_path / f"root {name}"
    place = layout_at(str(root)).bundle(name)
    push_bundle(LocalTransport(), place, local)
    write_bundle(local, {**FILES, "prefix.onnx": b"second"})
    push_bundle(LocalTransport(), place, local)
    teach(current(place), "x")
    rollback(LocalTransport(), place)
    pull_edits(LocalTransport(), place, local)
    assert edits_of(local) == ["x"]
    (listed,) = list_device(LocalTransport(), place.layout).bundles
    assert (listed.name, len(listed.versions), listed.fault) == (name, 2, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, root.name])
    remove_bundle(LocalTransport(), place)
    assert list_device(LocalTransport(), place.layout).bundles == ()
    assert list((root / "bundles").iterdir()) == []


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "..", "a/b"])
def test_bundle_name_is_refused_before_anything_happens(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match=re.escape(repr(name))):
        layout_at(str(tmp_path)).bundle(name)


@pytest.mark.parametrize("linked", ["root", "root/bundles", "root/bundles/b", "root/bundles/b/versions"])
def test_nothing_is_done_below_a_link(tmp_path: Path, linked: str) -> None:
    place = layout_at(str(tmp_path / "root")).bundle("b")
    local = write_bundle(tmp_path / "local")
    push_bundle(LocalTransport(), place, local)
    path, elsewhere = tmp_path / linked, tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    before = sorted(elsewhere.rglob("*"))
    for action in (
        lambda: push_bundle(LocalTransport(), place, local),
        lambda: pull_edits(LocalTransport(), place, local),
        lambda: rollback(LocalTransport(), place),
    ):
        with pytest.raises(DeviceError, match=f"{re.escape(str(path))} on the device is a link"):
            action()
    if linked != "root/bundles/b/versions":
        with pytest.raises(DeviceError, match="is a link"):
            remove_bundle(LocalTransport(), place)
    assert sorted(elsewhere.rglob("*")) == before


def test_push_refuses_when_current_leads_out_of_the_versions(place: BundlePlace, tmp_path: Path) -> None:
    link = Path(place.folder) / "current"
    link.unlink()
    link.symlink_to(tmp_path)
    with pytest.raises(DeviceError, match=r"leads to .*, which is no version of the bundle: remove the bundle"):
        push_bundle(LocalTransport(), place, tmp_path / "b")


def test_remove_takes_what_it_is_told_and_no_more(place: BundlePlace) -> None:
    root = Path(place.layout.root)
    other = place.layout.bundle("other")
    push_bundle(LocalTransport(), other, write_bundle(root.parent / "other"))
    (root / "runner" / "versions").mkdir(parents=True)
    (root / ".staging-20260102T030405Z-01234567" / "x").mkdir(parents=True)
    assert remove_bundle(LocalTransport(), place) == place.folder
    assert sorted(path.name for path in root.iterdir()) == [
        ".staging-20260102T030405Z-01234567",
        "bundles",
        "runner",
    ]
    remove_runner(LocalTransport(), place.layout)
    assert remove_staged(LocalTransport(), place.layout) == (".staging-20260102T030405Z-01234567",)
    assert [path.name for path in root.iterdir()] == ["bundles"]
    require_whole(current(other))
    with pytest.raises(DeviceError, match=r"there is no .*/bundles/b on the device"):
        remove_bundle(LocalTransport(), place)


def test_remove_follows_no_link_inside_a_bundle(place: BundlePlace, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (Path(place.folder) / "versions" / "link").symlink_to(tmp_path / "kept")
    remove_bundle(LocalTransport(), place)
    assert (tmp_path / "kept" / "file").exists()


def test_list_tells_versions_edits_and_damage(place: BundlePlace, tmp_path: Path) -> None:
    teach(current(place), "a")
    push_bundle(LocalTransport(), place, write_bundle(tmp_path / "b", BIG))
    older, newer = sorted(Path(place.versions).iterdir())
    (older / "manifest.json").write_text("{", encoding="utf-8")
    (newer / "edits" / "journal").write_bytes(b"x" * 99 + b"MEJ1" + bytes(99) + b"y")
    (listed,) = list_device(LocalTransport(), place.layout).bundles
    assert [(each.version, each.current) for each in listed.versions] == [(older.name, False), (newer.name, True)]
    assert (listed.versions[0].bytes, listed.versions[0].edits) == (None, None)
    assert listed.versions[1].bytes == sum(map(len, BIG.values()))
    assert listed.versions[1].edits is None


def test_list_is_empty_when_nothing_was_pushed(tmp_path: Path) -> None:
    listing = list_device(LocalTransport(), layout_at(str(tmp_path / "no")))
    assert (listing.bundles, listing.runner) == ((), None)
