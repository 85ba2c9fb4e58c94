"""The packages that are installed here as wheels again: real ones, without a network."""

from __future__ import annotations

import platform
import sys
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

from mobiedit.device.requirements import Platform
from mobiedit.device.wheels import Wheel, Wheels
from mobiedit.runtime.files import sha256_of


def repack(name: str, folder: Path) -> Path:
    """Write an installed package as the wheel that it came from, without its programs."""
    installed = distribution(name)
    tags = [line.removeprefix("Tag: ") for line in _metadata(installed, "WHEEL") if line.startswith("Tag: ")]
    parts = [dict.fromkeys(column) for column in zip(*(tag.split("-") for tag in tags), strict=True)]
    stem = f"{installed.metadata['Name'].replace('-', '_').lower()}-{installed.version}"
    path = folder / f"{stem}-{'-'.join('.'.join(part) for part in parts)}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file in installed.files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts and Path(str(file.locate())).is_file():
                wheel.write(str(file.locate()), str(file))
    return path


def _metadata(installed: Distribution, name: str) -> list[str]:
    text = installed.read_text(name)
    assert text is not None
    return text.splitlines()


def wheels_of(folder: Path, *, python: tuple[int, int] | None = None, glibc: tuple[int, int] = (2, 17)) -> Wheels:
    """Return the wheels of a folder; by default for this machine."""
    files = tuple(Wheel(path.name, sha256_of(path), path.stat().st_size) for path in sorted(folder.glob("*.whl")))
    return Wheels(folder, Platform(platform.machine(), glibc, python or sys.version_info[:2]), files)
