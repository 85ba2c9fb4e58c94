"""Write a bundle so that it is there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from .bundle_layout import EDITS
from .errors import BundleError
from .files import fsync_folder, library_storage_errors, sha256_of, storage_errors, write_atomic
from .lock import editing_lock
from .manifest import FileEntry
from .manifest_fields import MANIFEST_NAME


class BundleWriter:
    """A folder beside the bundle's place that becomes the bundle by one rename.

    Use it as a context manager: whatever ends the block before ``finish`` leaves no trace of the new bundle, and the
    old one as it was. What a killed export left is cleared by the next one to the same place.

    Parameters
    ----------
    out
        Where the bundle shall be.
    force
        Replace what is there.

    Attributes
    ----------
    folder
        Where the new bundle's files go.

    Raises
    ------
    BundleError
        When something is there and ``force`` is off, or what is there is no bundle.
    BusyError
        When another export writes to the same place.
    """

    def __init__(self, out: Path, *, force: bool = False) -> None:
        self._out = out.absolute()  # exporting changes the working folder for a while
        self._force = force
        self._workshop = self._out.parent / f".{out.name}.export"
        self._retired = self._workshop / "old"
        self.folder = self._workshop / "new"
        self._held = ExitStack()

    def __enter__(self) -> Self:
        """Take the place, or refuse it."""
        self._refuse_place()
        with storage_errors(f"write {self._out}"):
            self._out.parent.mkdir(parents=True, exist_ok=True)
        self._held.enter_context(editing_lock(self._workshop, f"another export is writing {self._out}"))
        try:
            with storage_errors(f"write {self._out}"):
                self._recover()
                self._refuse_place()
                self.folder.mkdir()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove whatever has not become the bundle."""
        self._close()

    def _close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self._held.close()
        if self._out.exists() or not self._retired.exists():  # never the only copy of a bundle
            shutil.rmtree(self._workshop, ignore_errors=True)

    def _refuse_place(self) -> None:
        out = self._out
        if out.is_symlink():
            raise BundleError(f"{out} is a link: give the place itself")
        if out.exists():
            if not self._force:
                raise BundleError(f"{out} exists: give another place, or --force to replace it with its edits")
            if not (out / MANIFEST_NAME).is_file():
                raise BundleError(f"{out} exists and is not a bundle: give another place")
        if any(parent.exists() and not parent.is_dir() for parent in out.parents):
            raise BundleError(f"{out} cannot be made, a folder above it is a file: give another place")

    def _recover(self) -> None:
        """Clear what a killed export left; a bundle that it had moved aside comes back."""
        if self._retired.exists() and not self._out.exists():
            self._retired.rename(self._out)
        for leftover in (self.folder, self._retired):
            if leftover.exists():
                shutil.rmtree(leftover)

    def entries(self) -> dict[str, FileEntry]:
        """Return hash and size of every file written so far."""
        paths = sorted(path for path in self.folder.iterdir() if path.is_file())
        return {path.name: FileEntry(sha256_of(path), path.stat().st_size) for path in paths}

    def finish(self, manifest_json: str) -> None:
        """Write the manifest and move the folder into place."""
        with storage_errors(f"write {self._out}"):
            (self.folder / EDITS).mkdir()
            write_atomic(self.folder / MANIFEST_NAME, manifest_json.encode(), None)
            for path in self.folder.iterdir():
                path.chmod(0o700 if path.is_dir() else 0o644)  # the folder is that of the edits: personal
                if path.is_file():
                    _flush(path)
            self.folder.chmod(0o755)
            fsync_folder(self.folder)
            if self._out.exists():
                self._out.rename(self._retired)
            try:
                self.folder.rename(self._out)
            except BaseException:
                if self._retired.exists():
                    self._retired.rename(self._out)
                raise
            fsync_folder(self._out.parent)


def save_tensors(path: Path, tensors: Mapping[str, NDArray[np.generic]]) -> None:
    """Write tensors to a safetensors file.

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    with storage_errors(f"write {path.name}"), library_storage_errors():
        save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path)


def _flush(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())
