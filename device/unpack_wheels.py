"""Runs on the device, from standard input: the wheels of a folder are unpacked into an environment of their own.

Usage: python3 -I - MANIFEST_SHA256 FOLDER, with the manifest and the folder ``wheels`` in it. It needs the standard
library alone, neither pip nor venv, and makes what ``venv`` makes: ``pyvenv.cfg``, ``bin/python`` and
``lib/pythonX.Y/site-packages``. Exit code 3 and one line on standard error say what is in the way.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any, NoReturn

REFUSED = 3
_CHUNK = 2**20


def main(manifest_sha256: str, folder: Path) -> None:
    """Make the environment in `folder`, from nothing each time."""
    content = (folder / "runner.json").read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest_sha256:
        refuse("the runner's manifest was changed on the way: push again")
    manifest = json.loads(content)
    check_platform(manifest["platform"])
    site = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    shutil.rmtree(folder / "lib", ignore_errors=True)
    site.mkdir(parents=True)
    for wheel in manifest["wheels"]:
        path = folder / "wheels" / wheel["name"]
        if sha256_of(path) != wheel["sha256"]:
            refuse(f"{wheel['name']} was changed on the way: push again")
        unpack(path, site)
    make_environment(folder)


def check_platform(wanted: dict[str, Any]) -> None:
    """Refuse a device that the wheels were not made for."""
    machine, python = platform.machine(), list(sys.version_info[:2])
    if machine != wanted["architecture"] or python != wanted["python"]:
        refuse(
            f"the wheels are for {wanted['architecture']} and Python {_dotted(wanted['python'])}, the device has "
            f"{machine} and Python {_dotted(python)}: fetch the wheels for it"
        )
    name, version = platform.libc_ver()
    if name != "glibc" or [int(part) for part in version.split(".")[:2]] < wanted["glibc"]:
        needed = _dotted(wanted["glibc"])
        refuse(
            f"the wheels are for glibc {needed}, the device has {name or 'another C library'} {version}: fetch others"
        )


def unpack(path: Path, site: Path) -> None:
    """Unpack a wheel; of what it keeps in ``*.data`` packages are moved to the others, programs are left out."""
    with zipfile.ZipFile(path) as wheel:
        wheel.extractall(site)
        roots = {name.split("/")[0] for name in wheel.namelist()}
    for root in roots:
        if root.endswith(".data"):
            for kind in ("purelib", "platlib"):
                if (site / root / kind).is_dir():
                    shutil.copytree(site / root / kind, site, dirs_exist_ok=True)
            shutil.rmtree(site / root)


def make_environment(folder: Path) -> None:
    """Write what tells Python that this is an environment: none of the system's packages is seen in it."""
    python = Path(sys.executable).resolve()
    shutil.rmtree(folder / "bin", ignore_errors=True)
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(python)
    settings = f"home = {python.parent}\ninclude-system-site-packages = false\n"
    (folder / "pyvenv.cfg").write_text(settings, "utf-8")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file; nothing when it is missing."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except FileNotFoundError:
        return ""
    return digest.hexdigest()


def refuse(message: str) -> NoReturn:
    """End with one line."""
    print(message, file=sys.stderr)
    sys.exit(REFUSED)


def _dotted(version: list[int]) -> str:
    return ".".join(map(str, version))


if __name__ == "__main__":
    try:
        main(sys.argv[1], Path(sys.argv[2]))
    except OSError as error:  # the disk is full or read-only: the device's own words
        refuse(f"{error.strerror}: {error.filename}: free some space there, or choose another --root, and push again")
