"""A folder that is there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mobiedit.runtime.errors import ExportError
from mobiedit.runtime.files import fsync_folder, storage_errors


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a folder beside ``out`` that becomes it by one rename; whatever ends the block early leaves no trace.

    Raises
    ------
    ExportError
        When something is at ``out``.
    StorageError
        When the disk refuses.
    """
    _refuse(out)
    with storage_errors(f"write {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as workshop:
            folder = Path(workshop) / "new"  # of the permissions that any new folder has
            folder.mkdir()
            yield folder
            _flush(folder)
            _refuse(out)
            folder.rename(out)
        fsync_folder(out.parent)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content, through a link, under the permissions of any new file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _refuse(out: Path) -> None:
    if out.is_symlink() or out.exists():
        raise ExportError(f"{out} exists: give another place")
    if any(parent.exists() and not parent.is_dir() for parent in out.absolute().parents):
        raise ExportError(f"{out} cannot be made, a folder above it is a file: give another place")


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            fsync_folder(path)
        else:
            with path.open("r+b") as file:
                os.fsync(file.fileno())
