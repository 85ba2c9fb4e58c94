"""Paths on the device: only below a few roots, and only as they are written."""

from __future__ import annotations

import posixpath
import unicodedata

from mobiedit.runtime.errors import RequestError

from .errors import DeviceError
from .transport import Transport

DEFAULT_ROOT = "/data/local/tmp/mobiedit"
"""Where the tool keeps its files on a device: the one place where Android's shell user may run programs."""

ALLOWED_PLACES = ("/data/local/tmp", "/home/<user>", "/opt", "/root", "/tmp", "/var/tmp")
"""A root lies at least one component below one of these; ``<user>`` stands for any name."""

LONGEST_NAME = 255
LONGEST_PATH = 900
"""Bytes. adb's file transfer takes 1,024, with the mode and the temporary name that a pushed file has at first."""


def check_root(root: str) -> str:
    """Return `root` if the tool may write and remove below it.

    Raises
    ------
    RequestError
        If it is not absolute and normalised, or lies below none of `ALLOWED_PLACES`.
    """
    if not root.startswith("/") or posixpath.normpath(root) != root or root.startswith("//"):
        raise RequestError(f"the root {root!r} is not absolute and normalised: write it as {DEFAULT_ROOT}")
    names = root[1:].split("/")
    for name in names:
        check_name(name)
    if not any(_lies_below(names, place[1:].split("/")) for place in ALLOWED_PLACES):
        raise RequestError(f"the root {root!r} is not allowed: take a folder below one of {', '.join(ALLOWED_PLACES)}")
    return _check_length(root)


def child(root: str, *names: str) -> str:
    """Return the path of a file or folder below an allowed root, one name a level.

    Raises
    ------
    RequestError
        If the root is not allowed, or a name is not one component that stays below it.
    """
    return _check_length("/".join([check_root(root), *map(check_name, names)]))


def check_name(name: str) -> str:
    """Return `name` if it is one component of a path.

    Any printable character is allowed, since every word for the device is quoted.

    Raises
    ------
    RequestError
        If it is empty, ``.``, ``..``, longer than a file system takes, or holds ``/`` or a control character.
    """
    if name in ("", ".", ".."):
        raise RequestError(f"{name!r} is not the name of a file or folder: give it a name of its own")
    if "/" in name:
        raise RequestError(f"the name {name!r} holds '/': give one without")
    if any(unicodedata.category(character) == "Cc" for character in name):
        raise RequestError(f"the name {name!r} holds a control character: rename it")
    if len(_encoded(name)) > LONGEST_NAME:
        raise RequestError(f"the name {name[:20]!r}... is longer than {LONGEST_NAME} bytes: take a shorter one")
    return name


def refuse_links(transport: Transport, root: str) -> None:
    """Refuse a root that leads elsewhere: neither it nor a folder between it and its allowed place may be a link.

    Raises
    ------
    DeviceError
        If there is a symbolic link; what is not there yet is no link.
    TransportError
        If the connection fails.
    """
    names = check_root(root)[1:].split("/")
    place = next(place[1:].split("/") for place in ALLOWED_PLACES if _lies_below(names, place[1:].split("/")))
    folders = ["/" + "/".join(names[:depth]) for depth in range(len(place) + 1, len(names) + 1)]
    for folder in folders:
        if transport.run(["test", "-L", folder]).code == 0:
            raise DeviceError(f"{folder} on the device is a symbolic link: name the folder itself with --root")


def _lies_below(names: list[str], place: list[str]) -> bool:
    if len(names) <= len(place):
        return False
    return all(allowed in ("<user>", name) for name, allowed in zip(names, place, strict=False))


def _check_length(path: str) -> str:
    if len(_encoded(path)) > LONGEST_PATH:
        raise RequestError(f"the path {path[:40]!r}... is longer than {LONGEST_PATH} bytes: take shorter names")
    return path


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
