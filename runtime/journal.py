"""The edits of a bundle: an append-only file of checksummed frames, one for each edit and each undo.

A frame is ``MEJ1``, the length of the payload (little-endian u32), its SHA-256 and the payload: a safetensors blob
whose metadata holds the record as JSON. A crash while appending can only leave a torn tail, which reading skips and the
next append cuts off; any other damage is an error, since going on could lose an edit.
"""

import hashlib
import json
import logging
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from reprlib import repr as short

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from .errors import JournalError
from .files import ensure_folder, read_regular, write_tail
from .journal_records import VECTORS, EditRecord, Record, UndoRecord

JOURNAL_NAME = "journal"
MAX_PAYLOAD = 64 * 2**20

_MAGIC = b"MEJ1"
_HEADER = struct.Struct("<4sI32s")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JournalState:
    """What a journal holds: active edits, all records in order, and the lengths of its good part and torn tail."""

    edits: tuple[EditRecord, ...]
    records: tuple[Record, ...]
    valid_bytes: int
    dropped_bytes: int


def encode(record: Record) -> bytes:
    """Return the frame of a record; JournalError if it is too large, ValueError or TypeError if it is not JSON."""
    # safetensors writes the memory as it lies: a strided array would become another one.
    vectors = {name: np.ascontiguousarray(getattr(record, name)) for name in VECTORS if hasattr(record, name)}
    content = {field.name: getattr(record, field.name) for field in fields(record) if field.name not in vectors}
    content["kind"] = "edit" if isinstance(record, EditRecord) else "undo"
    payload = save(vectors, metadata={"record": json.dumps(content, allow_nan=False)})
    if len(payload) > MAX_PAYLOAD:
        raise JournalError(f"the edit needs {len(payload)} bytes of at most {MAX_PAYLOAD}; shorten its prompt")
    return _HEADER.pack(_MAGIC, len(payload), hashlib.sha256(payload).digest()) + payload


def _decode(payload: bytes) -> Record:
    """Return the record of a payload whose checksum is right; ValueError if it is no record all the same."""
    try:
        vectors = load(payload)
        (header_length,) = struct.unpack_from("<Q", payload)
        content = json.loads(json.loads(payload[8 : 8 + header_length])["__metadata__"]["record"])
        make: Callable[..., Record] = {"edit": EditRecord, "undo": UndoRecord}[content.pop("kind")]
        return make(**content, **vectors)
    except (SafetensorError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("not a record of this version") from error


def _frame_at(data: bytes, offset: int) -> tuple[bytes, int] | None:
    """Return the payload of the frame at `offset` and the offset behind it, or None if the frame is not whole."""
    if len(data) < (start := offset + _HEADER.size):
        return None
    magic, length, digest = _HEADER.unpack_from(data, offset)
    if magic != _MAGIC or length > min(MAX_PAYLOAD, len(data) - start):
        return None
    payload = data[start : start + length]
    return (payload, start + length) if hashlib.sha256(payload).digest() == digest else None


def _check_torn(tail: bytes) -> None:
    """Raise ValueError unless the bytes after the last good frame can be what an interrupted append left."""
    # Zeros at the end stand for bytes that never reached the disk.
    tail = tail.rstrip(b"\0")
    if len(tail) > _HEADER.size + MAX_PAYLOAD:
        raise ValueError("unknown content")
    # Where another frame starts, records were committed after the bad one. Neither chance nor a prompt makes such a
    # start: text after the magic would be too large a length.
    for start in (found.start() for found in re.finditer(_MAGIC, tail)):
        length = int.from_bytes(tail[start + 4 : start + 8], "little")
        if start == 0 and (length > MAX_PAYLOAD or _HEADER.size + length < len(tail)):
            raise ValueError("wrong length or checksum")
        if 0 < start <= len(tail) - _HEADER.size and length <= MAX_PAYLOAD:
            raise ValueError("records follow it")


def _check_base(record: Record, base_sha256: str) -> None:
    if isinstance(record, EditRecord) and record.base_sha256 != base_sha256:
        raise JournalError(
            f"edit {record.edit_id} belongs to another model ({short(record.base_sha256)}); "
            "use the bundle it was made for, or move the journal away to start without edits"
        )


def read_journal(path: Path, base_sha256: str) -> JournalState:
    """Read a journal; one that does not exist is empty, and a torn tail is left out.

    Raises
    ------
    JournalError
        If the journal is damaged before its end, or an edit belongs to a model other than `base_sha256`.
    BundleError
        If the journal is a link or no regular file.
    StorageError
        If it may not be read.
    """
    return parse_journal(read_regular(path) or b"", path, base_sha256)


def parse_journal(data: bytes, source: Path | str, base_sha256: str) -> JournalState:
    """Return what a journal's bytes hold; `source` says where they are from. JournalError as of `read_journal`."""
    records: list[Record] = []
    active: dict[str, EditRecord] = {}
    seen: set[str] = set()
    offset = 0
    try:
        while (frame := _frame_at(data, offset)) is not None:
            record = _decode(frame[0])
            if isinstance(record, EditRecord):
                if record.edit_id in seen:
                    raise ValueError(f"edit {record.edit_id} is there twice")
                seen.add(record.edit_id)
                active[record.edit_id] = record
            elif active.pop(record.edit_id, None) is None:
                raise ValueError(f"undo of {record.edit_id}, which is not active")
            _check_base(record, base_sha256)
            records.append(record)
            offset = frame[1]
        _check_torn(data[offset:])
    except ValueError as error:
        raise JournalError(
            f"{source} is damaged at byte {offset} ({error}); restore it from a backup, "
            f"or cut it to {offset} bytes to keep only the edits before the damage"
        ) from error
    return JournalState(tuple(active.values()), tuple(records), offset, len(data) - offset)


class Journal:
    """The journal in `folder`, which the first append creates, bound to the model named by `base_sha256`."""

    def __init__(self, folder: Path, base_sha256: str) -> None:
        self.path = folder / JOURNAL_NAME
        self._base_sha256 = base_sha256

    def read(self) -> JournalState:
        """Read the journal, with or without the lock; errors as of `read_journal`."""
        return read_journal(self.path, self._base_sha256)

    def append_edits(self, records: Sequence[EditRecord]) -> None:
        """Commit edits, all or none: on return they are on the disk. The caller must hold `editing_lock`.

        Raises
        ------
        JournalError
            If an edit is of another model, too large or in the journal already; and as of `read_journal`.
        StorageError
            If the disk refuses; the journal is as it was.
        ValueError, TypeError
            If a report is not JSON.
        """
        state = self.read()
        known = {record.edit_id for record in state.records}
        for record in records:
            _check_base(record, self._base_sha256)
            if record.edit_id in known:
                raise JournalError(f"edit {record.edit_id} is in the journal already; give it another identifier")
            known.add(record.edit_id)
        self._append(state, records)

    def append_undo(self, edit_id: str) -> None:
        """Withdraw an active edit; JournalError if there is none of this identifier, else as `append_edits`."""
        state = self.read()
        active = [edit.edit_id for edit in state.edits]
        if edit_id not in active:
            choice = f"name one of: {', '.join(active)}" if active else "there is nothing to undo"
            raise JournalError(f"no active edit {short(edit_id)}; {choice}")
        self._append(state, (UndoRecord(edit_id, datetime.now(UTC).isoformat(timespec="seconds")),))

    def append_merged(self, records: Iterable[Record]) -> None:
        """Append what `merge_records` found to be new here; the caller must hold `editing_lock`."""
        self._append(self.read(), records)

    def _append(self, state: JournalState, records: Iterable[Record]) -> None:
        if state.dropped_bytes:
            _log.warning("%s: dropping %d bytes of an interrupted edit", self.path, state.dropped_bytes)
        ensure_folder(self.path.parent)
        write_tail(self.path, state.valid_bytes, b"".join(map(encode, records)))
