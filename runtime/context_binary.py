"""What a context binary was compiled for and by, as its own bytes state it.

A binary of another SoC may load and then fail or compute wrongly: the simulator runs any. So loading proves nothing,
and each is looked at before a session is opened from it.
"""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass
from pathlib import Path

from . import qnn
from .configuration import ExecutionConfig
from .contexts import ContextFile, SocContexts
from .errors import BundleError, ExecutionError, RequestError
from .files import EXPORT_AGAIN, safe_child, storage_errors
from .manifest import Manifest
from .onnx_external_data import contents, external_locations, messages

_HEAD = 64 * 2**20  # what a binary states is in front of its weights: within 100 KB for a model of 135M
_TARGET = re.compile(rb"soc_type=([A-Za-z0-9]{1,32});arch=(\d{1,4});")
_BUILD = re.compile(rb"v(\d{1,9}\.\d{1,9}\.\d{1,9}\.\d{1,20})")
_NAME, _TEXT = 1, 4  # fields of an AttributeProto
_WRAPPER_LIMIT = 2**20  # one node, and an input and output for each cache


@dataclass(frozen=True)
class BinaryTarget:
    """What a binary is for and who compiled it: the SoC's name, its HTP architecture, the version of QAIRT."""

    soc: str
    htp: int
    qairt: str

    def __str__(self) -> str:
        return f"{self.soc}, v{self.htp}, QAIRT {self.qairt}"


def read_target(path: Path) -> BinaryTarget:
    """Return what a context binary states about itself; no more than its first 64 MiB are looked through.

    Raises
    ------
    BundleError
        When it states no target, as a file that is no context binary.
    StorageError
        When it may not be read.
    """
    with storage_errors(f"read {path}"), path.open("rb") as file:
        if not path.stat().st_size:
            raise _no_binary(path)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            end = min(len(data), _HEAD)
            target, build = (pattern.search(data, 0, end) for pattern in (_TARGET, _BUILD))
            if not target or not build:
                raise _no_binary(path)
            return BinaryTarget(target[1].decode(), int(target[2]), build[1].decode())


def require_usable_contexts(folder: Path, manifest: Manifest, execution: ExecutionConfig) -> None:
    """Refuse what the NPU that is asked for should not run; a bundle without contexts is compiled there instead.

    Raises
    ------
    RequestError
        When the bundle has contexts, but for other SoCs alone.
    ExecutionError
        When a newer QAIRT than the provider's compiled them, or the provider is not installed.
    BundleError
        When a file is not what the manifest says of it.
    """
    if not manifest.contexts or not (soc := execution.target):
        return
    if not (found := manifest.contexts.get(soc.name)):
        raise RequestError(
            f"the bundle's context binaries are for {', '.join(sorted(manifest.contexts))}, not for {soc.name}: "
            f"give --soc with one of these if that is the device's, or export with --soc {soc.name} or --no-compile"
        )
    if _release(found.qairt) > _release(installed := qnn.qairt_version()):
        raise ExecutionError(
            f"the context binaries for {soc.name} are of QAIRT {found.qairt}, the provider's is {installed}: "
            "install a newer onnxruntime-qnn, or export the bundle with this one"
        )
    for file in found.files:
        _require_reference(folder, file)
        require_target(folder / file.binary, BinaryTarget(soc.name, soc.htp, found.qairt), found)


def require_target(path: Path, wanted: BinaryTarget, stated: SocContexts | None = None) -> None:
    """Refuse a binary that is for another target than ``wanted``, or of which the manifest states another.

    Raises
    ------
    BundleError
        When it is.
    """
    found = read_target(path)
    if found != wanted:
        raise BundleError(f"context binary {path.name} is for {found} instead of {wanted}; {EXPORT_AGAIN}")
    if stated and stated.htp != wanted.htp:
        raise BundleError(f"{wanted.soc} has v{wanted.htp}, the manifest states v{stated.htp}; {EXPORT_AGAIN}")


def referenced_files(wrapper: bytes) -> set[str]:
    """Return the names of all files that ONNX Runtime would read for a wrapper: binaries, and weights if there are any.

    Raises
    ------
    ValueError
        When the bytes are no ONNX model.
    """
    names = external_locations(wrapper)
    for kind, message in messages(wrapper):
        if kind == "AttributeProto":
            fields = [(number, bytes(content)) for number, content in contents(message)]
            if (_NAME, b"ep_cache_context") in fields:
                names |= {text.decode("utf-8", "replace") for number, text in fields if number == _TEXT}
    return names


def _require_reference(folder: Path, file: ContextFile) -> None:
    path = safe_child(folder, file.wrapper)
    safe_child(folder, file.binary)
    with storage_errors(f"read {path}"), path.open("rb") as opened:
        content = opened.read(_WRAPPER_LIMIT + 1)
    try:
        names = referenced_files(content) if len(content) <= _WRAPPER_LIMIT else set()
    except ValueError:
        names = set()
    if names != {file.binary}:
        raise BundleError(f"{file.wrapper} does not take {file.binary} alone; {EXPORT_AGAIN}")


def _no_binary(path: Path) -> BundleError:
    return BundleError(f"{path.name} is no context binary, it states no SoC and no version; {EXPORT_AGAIN}")


def _release(version: str) -> tuple[int, ...]:
    """Return the numbers of a release; the fourth one of a binary is its build's date."""
    return tuple(int(number) for number in version.split(".")[:3])
