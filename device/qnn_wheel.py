"""What a wheel of onnxruntime-qnn for aarch64 has in it, and whether that is all that a device needs."""

from __future__ import annotations

import base64
import csv
import hashlib
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.soc import SOCS

_FOLDER = "onnxruntime_qnn/"
_PROVIDER, _BACKEND = "libonnxruntime_providers_qnn.so", "libQnnHtp.so"
_OTHERS = ("libQnnHtpPrepare.so", "libQnnSystem.so")
_AARCH64, _HEXAGON = 183, 164  # e_machine of an ELF file (EM_AARCH64, EM_QDSP6)
_SKELETON = re.compile(r"libQnnHtpV(\d+)Skel\.so")
_REMEDY = "download the wheel again (pip download onnxruntime-qnn)"


@dataclass(frozen=True)
class QnnWheel:
    """What was found.

    Attributes
    ----------
    version, platform
        Of the wheel: 2.7.0, manylinux_2_34_aarch64.
    libraries
        The provider, QNN's HTP backend, its compiler, its stubs.
    skeletons
        HTP architectures whose skeleton, the half that runs on the NPU, is there: 73 is v73.
    failures
        What is missing or damaged, a sentence each.
    """

    version: str
    platform: str
    libraries: tuple[str, ...]
    skeletons: tuple[int, ...]
    failures: tuple[str, ...]


def inspect(path: Path) -> QnnWheel:
    """Look into a wheel, or a folder that one was unpacked into.

    Every file is compared with the wheel's record; libraries must be for aarch64, skeletons for Hexagon, one with its
    stub for each architecture that a SoC of `runtime/soc.py` has.

    Raises
    ------
    RequestError
        When it is neither.
    """
    if path.is_dir():
        files = [each for each in path.rglob("*") if each.is_file() and "__pycache__" not in each.parts]
        return _check({each.relative_to(path).as_posix(): each.read_bytes for each in files}, path)
    try:
        with zipfile.ZipFile(path) as wheel:
            return _check({name: _reader(wheel, name) for name in wheel.namelist()}, path)
    except (OSError, zipfile.BadZipFile) as error:
        raise RequestError(f"{path} is not a wheel that can be read ({error}): {_REMEDY}") from error


def _reader(wheel: zipfile.ZipFile, name: str) -> Callable[[], bytes]:
    return lambda: wheel.read(name)


def _check(files: dict[str, Callable[[], bytes]], path: Path) -> QnnWheel:
    record = next((name for name in files if re.fullmatch(r"onnxruntime_qnn-[^/]+\.dist-info/RECORD", name)), None)
    if record is None:
        raise RequestError(f"{path} is not onnxruntime-qnn, or not all of it: {_REMEDY}")
    failures = list(_record_failures(files, record))
    names = {name.removeprefix(_FOLDER) for name in files if name.startswith(_FOLDER) and name.endswith(".so")}
    skeletons = {int(found[1]): name for name in names if (found := _SKELETON.fullmatch(name))}
    needed = {_PROVIDER, _BACKEND, *_OTHERS} | {f"libQnnHtpV{version}Stub.so" for version in skeletons}
    failures += [f"{name} is missing: {_REMEDY}" for name in sorted(needed - names)]
    for version in sorted({soc.htp for soc in SOCS} - skeletons.keys()):
        failures.append(
            f"libQnnHtpV{version}Skel.so is missing: SoCs of that architecture need another version of the wheel"
        )
    for name in sorted(names):
        wanted = _HEXAGON if name in skeletons.values() else _AARCH64
        if (machine := _machine(files[_FOLDER + name]())) != wanted:
            failures.append(f"{name} is for another processor (ELF machine {machine}): take the wheel for aarch64")
    metadata = files[record.replace("RECORD", "WHEEL")]().decode() if record.replace("RECORD", "WHEEL") in files else ""
    tag = re.search(r"^Tag: \S+-(\S+)$", metadata, re.MULTILINE)
    return QnnWheel(
        record.split("-")[1].removesuffix(".dist"),
        tag[1] if tag else "",
        tuple(sorted(names - set(skeletons.values()))),
        tuple(sorted(skeletons)),
        tuple(failures),
    )


def _record_failures(files: dict[str, Callable[[], bytes]], record: str) -> Iterator[str]:
    """Compare the files with their hashes in the wheel's record, as urlsafe base64 without padding."""
    for name, stated, _size in csv.reader(files[record]().decode().splitlines()):
        algorithm, _, digest = stated.partition("=")
        if algorithm != "sha256" or not name.startswith(_FOLDER):
            continue
        if name not in files:
            yield f"{name} is missing: {_REMEDY}"
        elif base64.urlsafe_b64encode(hashlib.sha256(files[name]()).digest()).decode().rstrip("=") != digest:
            yield f"{name} is damaged: {_REMEDY}"


def _machine(data: bytes) -> int | None:
    """Return ``e_machine`` of a little-endian ELF file; None when it is none."""
    return int.from_bytes(data[18:20], "little") if data[:4] == b"\x7fELF" and data[5:6] == b"\1" else None
