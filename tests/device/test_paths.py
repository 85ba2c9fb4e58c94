"""Which paths on a device the tool touches."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobiedit.device.errors import DeviceError
from mobiedit.device.paths import ALLOWED_PLACES, DEFAULT_ROOT, check_name, check_root, child, refuse_links
from mobiedit.runtime.errors import RequestError
from tests.device.conftest import AdbDevice

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@pytest.mark.parametrize(
    "root",
    [DEFAULT_ROOT, "/home/me/edits", "/opt/x", "/root/x", "/tmp/a b/$(c);'", "/var/tmp/ü", "/data/local/tmp/-rf"],
)
def test_a_root_is_taken_when_it_lies_below_an_allowed_place(root: str) -> None:
    assert check_root(root) == root


@pytest.mark.parametrize(
    "root",
    [
        *("", "/", "x", "tmp/x", "/tmp", "/tmp/", "/tmp/.", "/tmp/..", "/tmp/../etc/x", "/tmp/x/../../etc", "/tmp//x"),
        *("//tmp/x", "/tmp/x/", "/home", "/home/me", "/etc/x", "/tmpx/y", "/data/local/x", "/tmp/a\nb", "/tmp/a\0b"),
        *("/tmp/\x7f", "/tmp/\x85", "/tmp/" + "x" * 256, "/tmp/" + "/".join(["x" * 200] * 5)),
    ],
)
def test_a_root_is_refused_when_it_may_lead_elsewhere(root: str) -> None:
    with pytest.raises(RequestError, match=": "):
        check_root(root)


@settings(deadline=None)
@given(st.one_of(TEXT, TEXT.map("/tmp/".__add__), st.lists(TEXT).map("/".join).map("/data/local/tmp/".__add__)))
def test_a_root_stays_inside_its_place_when_it_is_taken(root: str) -> None:
    try:
        check_root(root)
    except RequestError:
        return
    assert posixpath.normpath(root) == root
    assert any(root.startswith(place.partition("<")[0].rstrip("/") + "/") for place in ALLOWED_PLACES)
    assert ".." not in root.split("/")


@settings(deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=4))
def test_a_child_has_the_root_and_its_names_when_they_are_taken(names: list[str]) -> None:
    try:
        path = child(DEFAULT_ROOT, *names)
    except RequestError:
        return
    assert posixpath.normpath(path) == path
    assert path.split("/") == [*DEFAULT_ROOT.split("/"), *names]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "a\nb", "a\tb", "\0", "\x1b[2J", "ü" * 128])
def test_a_name_is_refused_when_it_is_not_one_component(name: str) -> None:
    with pytest.raises(RequestError):
        check_name(name)
    with pytest.raises(RequestError):
        child(DEFAULT_ROOT, "bundles", name)


def test_a_root_is_refused_when_it_or_a_folder_above_is_a_link(adb_device: AdbDevice) -> None:
    folder = adb_device.root / "real" / "mobiedit"
    folder.mkdir(parents=True)
    (adb_device.root / "a link").symlink_to("real")
    refuse_links(adb_device.transport, str(folder))
    refuse_links(adb_device.transport, str(adb_device.root / "not there yet"))
    for root in (adb_device.root / "a link", adb_device.root / "a link" / "mobiedit"):
        with pytest.raises(DeviceError, match="a link on the device is a symbolic link"):
            refuse_links(adb_device.transport, str(root))
