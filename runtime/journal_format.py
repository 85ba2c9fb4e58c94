"""The bytes of a journal: checksummed frames, each with the records that were committed at once.

A frame is ``MEJ1``, the length of the payload (little-endian u32), its SHA-256 and the payload: a safetensors blob
whose metadata holds the records as JSON and whose tensors are theirs, ``0.key`` and so on. What one frame holds is
there as a whole or not at all, so a batch is one frame. A crash while appending can only leave a torn tail; any other
damage is an error, since going on could lose an edit.
"""

import hashlib
import json
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from .errors import JournalError
from .journal_records import VECTORS, EditRecord, ForgetRecord, Record, UndoRecord
from .manifest_fields import finite

MAX_PAYLOAD = 64 * 2**20

_MAGIC = b"MEJ1"
_HEADER = struct.Struct("<4sI32s")
_KINDS: dict[str, type[Record]] = {"edit": EditRecord, "undo": UndoRecord, "forget": ForgetRecord}
_TORN_KIND = re.compile(rb'"records":"\[\{\\"kind\\": \\"(%s)\\"' % b"|".join(kind.encode() for kind in _KINDS))


def encode(records: Sequence[Record]) -> bytes:
    """Return the frame of records.

    Raises
    ------
    JournalError
        If it is too large.
    ValueError, TypeError
        If a record is not JSON.
    """
    vectors: dict[str, NDArray[np.float32]] = {}
    contents = []
    for index, record in enumerate(records):
        # safetensors writes the memory as it lies: a strided array would become another one.
        own = {name: np.ascontiguousarray(getattr(record, name)) for name in VECTORS if hasattr(record, name)}
        vectors |= {f"{index}.{name}": vector for name, vector in own.items()}
        (kind,) = (kind for kind, made in _KINDS.items() if type(record) is made)
        # The kind comes first, so that a torn record tells it.
        contents.append({"kind": kind} | {f.name: getattr(record, f.name) for f in fields(record) if f.name not in own})
    payload = save(vectors, metadata={"records": json.dumps(contents, allow_nan=False)})
    if len(payload) > MAX_PAYLOAD:
        raise JournalError(f"the edit needs {len(payload)} bytes of at most {MAX_PAYLOAD}; shorten its prompt")
    return _HEADER.pack(_MAGIC, len(payload), hashlib.sha256(payload).digest()) + payload


def frames(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield the payload of each good frame from the start on, and the offset behind it."""
    offset = 0
    while (frame := _frame_at(data, offset)) is not None:
        yield frame
        offset = frame[1]


def decode(payload: bytes) -> tuple[Record, ...]:
    """Return the records of a payload whose checksum is right; ValueError if they are none all the same."""
    try:
        vectors = load(payload)
        (header_length,) = struct.unpack_from("<Q", payload)
        text = json.loads(payload[8 : 8 + header_length])["__metadata__"]["records"]
        contents = json.loads(text, parse_constant=finite, parse_float=finite)
        if not isinstance(contents, list) or not contents:
            raise ValueError("not a list of records")
        records = tuple(_record(content, index, vectors) for index, content in enumerate(contents))
    except (SafetensorError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("not a record of this version") from error
    if vectors:
        raise ValueError("tensors of no record")
    return records


def check_torn(tail: bytes) -> None:
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


def torn_kind(tail: bytes) -> str | None:
    """Return what a torn tail was the beginning of, "edit", "undo" or "forget"; None where too little is left."""
    found = _TORN_KIND.search(tail, 0, _HEADER.size + 200)
    return found[1].decode() if found else None


def _frame_at(data: bytes, offset: int) -> tuple[bytes, int] | None:
    """Return the payload of the frame at `offset` and the offset behind it, or None if the frame is not whole."""
    if len(data) < (start := offset + _HEADER.size):
        return None
    magic, length, digest = _HEADER.unpack_from(data, offset)
    if magic != _MAGIC or length > min(MAX_PAYLOAD, len(data) - start):
        return None
    payload = data[start : start + length]
    return (payload, start + length) if hashlib.sha256(payload).digest() == digest else None


def _record(content: dict[str, Any], index: int, vectors: dict[str, NDArray[Any]]) -> Record:
    """Return a record of its JSON, and take its tensors out of `vectors`."""
    made: Callable[..., Record] = _KINDS[content.pop("kind")]
    own = {name: vectors.pop(f"{index}.{name}") for name in VECTORS} if made is EditRecord else {}
    return made(**content, **own)
