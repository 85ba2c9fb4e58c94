"""The runner as wheels in a folder: the project's own and what it needs on one platform, with their hashes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.files import sha256_of, storage_errors, write_atomic

from .errors import DeviceError
from .paths import check_name
from .requirements import PROJECT, Platform, pinned

MANIFEST = "runner.json"
"""Names, sizes and hashes of the wheels, beside them."""

_SCHEMA = 1
_NOT_SOURCE = (".*", "build", "dist", "tests", "docs", "scripts", "*.egg-info", "__pycache__")
_PIP_SECONDS = 1800.0


@dataclass(frozen=True)
class Wheel:
    """A file: its name, its SHA-256 in lowercase hex, its size in bytes."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Wheels:
    """A folder with everything that a runner is.

    Attributes
    ----------
    folder
        Where the files are.
    platform
        What they were made for.
    files
        The wheels, by name.
    """

    folder: Path
    platform: Platform
    files: tuple[Wheel, ...]

    @property
    def manifest_bytes(self) -> bytes:
        """The folder's manifest; the same wheels give the same bytes."""
        platform = {**asdict(self.platform), "glibc": list(self.platform.glibc), "python": list(self.platform.python)}
        data = {"schema": _SCHEMA, "platform": platform, "wheels": [asdict(wheel) for wheel in self.files]}
        return json.dumps(data, indent=1).encode()


def fetch_wheels(
    out: Path, platform: Platform, *, qnn: bool, source: Path | None = None, project_wheel: Path | None = None
) -> Wheels:
    """Build the project's wheel, download the others with pip, and write the folder's manifest.

    The versions are those that are installed here. Nothing is downloaded that a source would have to be built from.

    Parameters
    ----------
    out
        A folder that is not there yet.
    platform
        The device's.
    qnn
        Whether the QNN provider is among them.
    source, project_wheel
        The project's source tree, or a wheel that was built before; without either, the tree that this runs from.

    Raises
    ------
    RequestError
        When `out` is there, or there is no source tree.
    DeviceError
        When pip fails: no network, no such wheel for the platform.
    StorageError
        When the disk refuses.
    """
    if out.exists():
        raise RequestError(f"{out} is there already: name a folder that is not")
    needed = [f"{name}=={version}" for name, version in pinned(platform, qnn=qnn).items()]
    with storage_errors(f"write {out}"):
        staged = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.absolute().parent))
        try:
            if project_wheel is None:
                _build(source or source_tree(), staged)
            else:
                shutil.copy(project_wheel, staged)
            _pip(_download_words(platform, staged, needed), "download the runner's wheels")
            files = tuple(Wheel(p.name, sha256_of(p), p.stat().st_size) for p in sorted(staged.glob("*.whl")))
            write_atomic(staged / MANIFEST, Wheels(out, platform, files).manifest_bytes, mode=None)
            staged.replace(out)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return Wheels(out, platform, files)


def read_wheels(folder: Path) -> Wheels:
    """Return the wheels of a folder that `fetch_wheels` wrote, after comparing each with its hash.

    Raises
    ------
    RequestError
        When the folder is no such one, or a file is missing or was changed.
    """
    remedy = "fetch the wheels again"
    try:
        data: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        if data["schema"] != _SCHEMA:
            raise RequestError(f"{folder / MANIFEST} has schema {data['schema']}, {_SCHEMA} is known: {remedy}")
        stated = data["platform"]
        glibc, python = (tuple(map(int, stated[name])) for name in ("glibc", "python"))
        platform = Platform(
            str(stated["architecture"]), (glibc[0], glibc[1]), (python[0], python[1]), bool(stated["windows"])
        )
        files = tuple(Wheel(check_name(w["name"]), str(w["sha256"]), int(w["size"])) for w in data["wheels"])
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise RequestError(f"{folder} has no manifest of wheels that can be read ({error!r}): {remedy}") from error
    for wheel in files:
        path = folder / wheel.name
        if not path.is_file() or path.is_symlink() or sha256_of(path) != wheel.sha256:
            raise RequestError(f"{path} is missing or was changed: {remedy}")
    return Wheels(folder, platform, files)


def source_tree() -> Path:
    """Return the source tree that this runs from.

    Raises
    ------
    RequestError
        When it runs from an installed wheel, which none can be built from.
    """
    tree = Path(__file__).resolve().parent.parent
    if not (tree / "pyproject.toml").is_file() or not (tree / "runtime").is_dir():
        raise RequestError(
            "the project's source tree is not here to build its wheel from: name a wheel of it (pip wheel --no-deps .)"
        )
    return tree


def _build(source: Path, out: Path) -> None:
    """Build the project's wheel from a copy: a tree that was built in before has stale files in its ``build``."""
    with tempfile.TemporaryDirectory() as folder:
        tree = shutil.copytree(source, Path(folder) / PROJECT, ignore=shutil.ignore_patterns(*_NOT_SOURCE))
        _pip(["wheel", "--no-deps", "--wheel-dir", str(out), str(tree)], "build the project's wheel")


def _download_words(platform: Platform, out: Path, needed: Sequence[str]) -> list[str]:
    version = "".join(map(str, platform.python))
    tags = [word for tag in platform.tags for word in ("--platform", tag)]
    abis = [word for abi in (f"cp{version}", "abi3", "none") for word in ("--abi", abi)]
    for_python = ["--implementation", "cp", "--python-version", version, *abis]
    return ["download", "--only-binary=:all:", "--no-deps", "--dest", str(out), *tags, *for_python, *needed]


def _pip(words: Sequence[str], what: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", *words]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PIP_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise DeviceError(f"cannot {what}: pip took more than {_PIP_SECONDS:g} s; check the network") from None
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").splitlines()
        errors = [line[7:] for line in lines if line.lower().startswith("error: ")]
        said = errors[-1] if errors else f"pip ended with {done.returncode}"
        raise DeviceError(f"cannot {what} ({said}): check the network, and that there is a wheel for the platform")
