"""Edits of a few numbers, and journals of them."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from mobiedit.runtime.journal import Journal
from mobiedit.runtime.journal_records import EditRecord, ForgetRecord, Record, UndoRecord

BASE = "b" * 64
CREATED = "2026-01-02T03:04:05+00:00"


def make_edit(edit_id: str, prompt: str | None = None, **changes: Any) -> EditRecord:
    """Return an edit whose fact and numbers are those of its identifier."""
    rng = np.random.default_rng(list(edit_id.encode()))
    key, direction, value, delta = (rng.standard_normal(size).astype(np.float32) for size in (3, 3, 2, 2))
    content = {
        "edit_id": edit_id,
        "created": CREATED,
        "prompt": prompt or f"The {edit_id} of {{}} is",
        "subject": "France",
        "target": "Paris",
        "paraphrases": (),
        "keep": (),
        "base_sha256": BASE,
        "tool_version": "1",
        "optimizer": "gn",
        "method": "rome",
        "gate": None,
        "batch": None,
        "leverage": 2.0,
        "report": {"steps": [1, 0.5, None]},
        "key": key,
        "value": value,
        "delta": delta,
        "direction": direction,
    }
    return EditRecord(**{**content, **changes})  # type: ignore[arg-type]


def undo(edit_id: str, created: str = "2026-01-02T03:04:06+00:00") -> UndoRecord:
    return UndoRecord(edit_id, created)


def forget(edit_id: str, created: str = "2026-01-02T03:04:07+00:00") -> ForgetRecord:
    return ForgetRecord(edit_id, created)


def ids(records: Sequence[Record]) -> list[str]:
    return [record.edit_id for record in records]


def names(records: Sequence[Record]) -> list[str]:
    """Return the records as +a for an edit, -a for its undo and !a for its tombstone."""
    signs = {EditRecord: "+", UndoRecord: "-", ForgetRecord: "!"}
    return [signs[type(record)] + record.edit_id for record in records]


def same(one: Record, other: Record) -> bool:
    """Tell whether two records are equal, to the bit."""
    return type(one) is type(other) and all(
        np.array_equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)
    )


def frame_of(payload: bytes) -> bytes:
    """Return a frame whose checksum is right, whatever it holds."""
    return struct.pack("<4sI32s", b"MEJ1", len(payload), hashlib.sha256(payload).digest()) + payload


def ends_of(data: bytes) -> list[int]:
    """Return the length of a journal after 0, 1, ... frames."""
    ends = [0]
    while ends[-1] < len(data):
        ends.append(ends[-1] + 40 + struct.unpack_from("<I", data, ends[-1] + 4)[0])
    return ends


def small_journal(folder: Path) -> Journal:
    """Return a journal of a, b, the undo of a, and c and d, taught at once; c looks like the start of a frame."""
    journal = Journal(folder, BASE)
    journal.append_edits((make_edit("a"),))
    journal.append_edits((make_edit("b"),))
    journal.append_undo("a")
    journal.append_edits((make_edit("c", prompt="MEJ1 {} MEJ1\0\0\0\0 é MEJ1", batch="x"), make_edit("d", batch="x")))
    return journal
