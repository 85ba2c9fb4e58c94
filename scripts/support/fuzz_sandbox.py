"""A mutated bundle in a folder of its own, and what is noticed while it is read."""

from __future__ import annotations

import os
import random
import shutil
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobiedit.runtime.bundle import open_bundle
from mobiedit.runtime.bundle_layout import EDITS
from mobiedit.runtime.edit_lines import to_lines
from mobiedit.runtime.edit_set import EditSet
from mobiedit.runtime.edit_store import EditStore
from mobiedit.runtime.errors import MobiEditError
from mobiedit.runtime.history import history
from mobiedit.runtime.journal_state import read_journal
from mobiedit.runtime.manifest import Manifest

from .fuzz_mutations import bytes_mutated, frames_mutated, json_mutated, place_mutated
from .small_bundle import write_small_bundle

_WATCHED = {"open", "os.listdir", "os.scandir", "os.mkdir", "os.remove", "os.rename", "os.link", "os.symlink"}
# What a mutation of contents finds that an earlier one has left without them.
_NO_LONGER_FIT = (ValueError, RecursionError, LookupError, TypeError, AttributeError, struct.error)


@dataclass(frozen=True)
class Case:
    """One mutated bundle: what was done to it, and the name in whose place something else was put, or None."""

    mutations: tuple[str, ...]
    placed: str | None


class Sandbox:
    """A folder with a bundle that is mutated, and the small real one that it is made of.

    Attributes
    ----------
    folder
        The bundle.
    """

    def __init__(self, place: Path) -> None:
        self._source = place / "source"
        self.folder = place / "case" / "bundle"
        self.manifest: Manifest = write_small_bundle(self._source)
        (place / "case").mkdir()
        (place / "case" / "x").write_bytes(b"outside")
        self._text = (self._source / "manifest.json").read_text("utf-8")
        self._journal = (self._source / EDITS / "journal").read_bytes()
        shutil.copytree(self._source, self.folder)

    def make(self, number: int, seed: int) -> Case:
        """Make the bundle of a case."""
        rng = random.Random(f"{seed}:{number}")
        text, journal = self._text.encode(), self._journal
        done = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            kind = rng.choice(("manifest-bytes", "manifest-json", "journal-bytes", "journal-frames", "place"))
            done.append(kind)
            if kind == "manifest-bytes":
                text = bytes_mutated(text, rng, self._journal)
            elif kind == "manifest-json":
                with suppress(*_NO_LONGER_FIT):
                    text = json_mutated(text.decode(), rng).encode("utf-8", "surrogatepass")
            elif kind == "journal-bytes":
                journal = bytes_mutated(journal, rng, self._journal)
            elif kind == "journal-frames":
                with suppress(*_NO_LONGER_FIT):
                    journal = frames_mutated(journal, rng)
        (self.folder / "manifest.json").write_bytes(text)
        (self.folder / EDITS / "journal").write_bytes(journal)
        others = {kind for kind in done if kind != "place"}
        if "place" not in done:
            return Case(tuple(sorted(others)), None)
        kind, name = place_mutated(self.folder, rng)
        return Case((*sorted(others), kind), name)

    def restore(self, name: str) -> None:
        """Put back what stood under a name."""
        path, source = self.folder / name, self._source / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, path)

    def read(self) -> str:
        """Read the bundle as the commands do; return "accepted", or which error refused it."""
        told = []
        try:
            opened = open_bundle(self.folder)
            store = EditStore(opened.path, opened.manifest)
            store.verify()
            state = store.journal.read()
            history(state)
            to_lines(state.edits)
            _ = EditSet(state.edits, opened.manifest.slots, opened.manifest.shape).slots
        except MobiEditError as error:
            told.append(error)
        if not (self.folder / EDITS).is_symlink():  # the journal, whatever is wrong with the manifest
            try:
                read_journal(self.folder / EDITS / "journal", self.manifest.edit_base)
            except MobiEditError as error:
                told.append(error)
        for error in told:
            if len(str(error).splitlines()) != 1:
                raise AssertionError(f"not one line: {error!s:.200}")
        return type(told[0]).__name__ if told else "accepted"


class Outside:
    """Notes what is opened, listed or changed outside a folder while a case is read."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder.resolve())
        self._code = tuple({sys.prefix, sys.base_prefix, *(path for path in sys.path if path)})
        self.active = False
        self.found: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active or event not in _WATCHED or isinstance(arguments[0], int):
            return
        path = os.path.realpath(os.fsdecode(arguments[0]))
        inside = path == self._folder or path.startswith(self._folder + os.sep)
        is_code = path.endswith((".py", ".pyc", ".so")) and path.startswith(self._code)  # a module imported late
        if not inside and not is_code:
            self.found.append(f"{event} {path}")


def limit_memory(more: int) -> None:
    """Limit this process's address space to what it has and so many bytes more; not on Windows."""
    if sys.platform == "win32":
        return
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, used + more))
