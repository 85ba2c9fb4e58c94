"""Bundles of a few bytes, with real manifests and journals but no model: what is pushed need not run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mobiedit.runtime.bundle_layout import EDITS
from mobiedit.runtime.journal import Journal
from mobiedit.runtime.journal_records import EditRecord
from mobiedit.runtime.journal_state import JournalState
from mobiedit.runtime.manifest import (
    SCHEMA_VERSION,
    BaseModel,
    FileEntry,
    Manifest,
    ModelShape,
    read_manifest,
    to_json,
    verify_files,
)

FILES = {"prefix.onnx": b"prefix", "suffix.onnx": b"suffix" * 1000, "tokenizer.json": b"{}", "empty.bin": b""}


def write_bundle(folder: Path, files: Mapping[str, bytes] = FILES, *, weights: str = "a" * 64, slots: int = 3) -> Path:
    """Write a bundle over whatever files are there, and leave its edits."""
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        base=BaseModel("small", "llama", None, weights),
        shape=ModelShape(4, 2, 3, 2, 1, 4, 32, 64, True),
        edit_layer=2,
        precision="fp32",
        target="cpu",
        sink_token=0,
        eos_tokens=(1,),
        mask_value=-100.0,
        slots=slots,
        row_prefixes=("{}",),
        canaries=(),
        statistics={},
        checks={},
        tools={},
        created="2026-01-02T03:04:05+00:00",
        files={name: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()},
    )
    (folder / "manifest.json").write_text(to_json(manifest), encoding="utf-8")
    (folder / EDITS).mkdir(exist_ok=True)
    return folder


def make_edit(edit_id: str, base_sha256: str, created: str = "2026-01-02T03:04:05+00:00") -> EditRecord:
    """Return an edit whose numbers are those of its identifier."""
    rng = np.random.default_rng(list(edit_id.encode()))
    key, direction, value, delta = (rng.standard_normal(size).astype(np.float32) for size in (3, 3, 2, 2))
    texts = (f"{edit_id} of {{}} is", "X", "Y")
    vectors = (key, value, delta, direction)
    return EditRecord(edit_id, created, *texts, (), (), base_sha256, "1", "gn", "gated", 0.7, None, 1.0, {}, *vectors)


def journal_of(folder: Path) -> Journal:
    """Return the journal of a bundle."""
    return Journal(folder / EDITS, read_manifest(folder).edit_base)


def teach(folder: Path, *edit_ids: str, created: str = "2026-01-02T03:04:05+00:00") -> None:
    """Commit edits to a bundle, wherever it is."""
    journal = journal_of(folder)
    for edit_id in edit_ids:
        journal.append_edits((make_edit(edit_id, read_manifest(folder).edit_base, created),))


def edits_of(folder: Path) -> list[str]:
    """Return the identifiers of the edits in force, oldest first."""
    return [edit.edit_id for edit in state_of(folder).edits]


def state_of(folder: Path) -> JournalState:
    """Return what the journal of a bundle holds."""
    return journal_of(folder).read()


def require_whole(folder: Path) -> dict[str, str]:
    """Fail unless every file of a bundle has its hash; return the hashes."""
    manifest = read_manifest(folder)
    verify_files(folder, manifest, hashes=True)
    assert {path.name for path in folder.iterdir()} - {EDITS} == {*manifest.files, "manifest.json"}
    return {name: entry.sha256 for name, entry in manifest.files.items()}
