"""What is done to a small bundle: bytes, JSON, frames whose checksums are right again, and things that are no files."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mobiedit.runtime.journal_format import frames

HOSTILE_NAMES = (
    "../x",
    "/etc/passwd",
    "a/../../b",
    "..",
    ".",
    "",
    "a\0b",
    "con",
    "NUL.txt",
    "C:\\x",
    "\\\\host\\share",
    "a:b",
    "x.",
    "x ",
    "é",
    "\ud800",
    "\u202e",
    "manifest.json",
    "edits",
    "edits/journal",
    "~",
    "-rf",
    "a" * 255,
    "a" * 256,
    "a" * 100_000,
)
_NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, 10**30, 10**400, 1e308, -0.0, 0.5, True)
_RAW = ("1e999", "-1e999", "NaN", "Infinity", "9" * 5000, "[" * 5000, '{"a":' * 5000, '"\\ud800"', "1.0", "null")


def bytes_mutated(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """Return bytes with flips, a cut, an insertion, a splice with others, or a run overwritten."""
    if not data:
        return rng.randbytes(rng.randrange(1, 64))
    kind, place = rng.randrange(6), rng.randrange(len(data))
    changed = bytearray(data)
    if kind == 0:
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            changed[rng.randrange(len(changed))] ^= rng.choice((1, 0x80, 0xFF, rng.randrange(1, 256)))
    elif kind == 1:
        del changed[place:]
    elif kind == 2:
        changed[place:place] = rng.choice((rng.randbytes(rng.randrange(1, 40)), bytes(40), b"MEJ1", b"\xff" * 9))
    elif kind == 3:
        start = rng.randrange(len(other)) if other else 0
        changed[place:] = other[start : start + rng.randrange(1, 600)]
    elif kind == 4:
        del changed[place : place + rng.randrange(1, 60)]
    else:
        end = min(len(changed), place + rng.randrange(1, 60))
        changed[place:end] = bytes([rng.choice((0, 0xFF, 0x22, 0x7B))]) * (end - place)
    return bytes(changed)


def json_mutated(text: str, rng: random.Random) -> str:
    """Return a JSON text with one value, key or piece of text replaced by a hostile one."""
    content = json.loads(text)
    parent, key = rng.choice(list(_places(content)))
    kind = rng.randrange(6)
    if kind == 0:
        parent[key] = rng.choice((*_NUMBERS, None, [], {}, "", [[]], {"": 1}))
    elif kind == 1:
        parent[key] = rng.choice(HOSTILE_NAMES)
    elif kind == 2:
        value = parent.pop(key)
        if isinstance(parent, dict) and rng.random() < 0.8:
            parent[rng.choice(HOSTILE_NAMES)] = value
    elif kind == 3:
        parent[key] = [parent[key]] * rng.choice((1, 2, 30))
    elif kind == 4:
        parent[key] = "\x01RAW\x01"
        return json.dumps(content).replace('"\\u0001RAW\\u0001"', rng.choice(_RAW))
    else:  # a key that is there twice
        written = json.dumps(content)
        name = json.dumps(rng.choice([k for p, k in _places(content) if isinstance(p, dict)]))
        return written.replace(f"{name}:", f"{name}: 1, {name}:", 1)
    return json.dumps(content)


def frames_mutated(data: bytes, rng: random.Random) -> bytes:
    """Return a journal whose checksums are right, with frames in another order or payloads that were changed."""
    payloads = [payload for payload, _ in frames(data)]
    if not payloads:
        return data
    at = rng.randrange(len(payloads))
    kind = rng.randrange(5)
    if kind == 0:
        rng.shuffle(payloads)
    elif kind == 1:
        payloads.insert(rng.randrange(len(payloads) + 1), payloads[at])
    elif kind == 2:
        del payloads[at]
    elif kind == 3:
        payloads[at] = bytes_mutated(payloads[at], rng, rng.choice(payloads))
    else:
        payloads[at] = _metadata_mutated(payloads[at], rng)
    return b"".join(map(_frame, payloads))


def place_mutated(folder: Path, rng: random.Random) -> tuple[str, str]:
    """Put something else in the place of a file, or of the edits' folder; return what, and the place."""
    name = rng.choice((*sorted(path.name for path in folder.iterdir()), "edits/journal"))
    path = folder / name
    kind = rng.choice(tuple(_PLACED))
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    _PLACED[kind](path)
    return kind, name


_PLACED: dict[str, Callable[[Path], Any]] = {
    "missing": lambda path: None,
    "link-out": lambda path: path.symlink_to("/etc/passwd"),
    "link-up": lambda path: path.symlink_to(path.parent.parent),
    "link-loop": lambda path: path.symlink_to(path.name),
    "link-dangling": lambda path: path.symlink_to("nowhere"),
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "empty": lambda path: path.write_bytes(b""),
    "long": lambda path: path.write_bytes(bytes(300_000)),
}


def _metadata_mutated(payload: bytes, rng: random.Random) -> bytes:
    """Return a safetensors payload whose header is well formed and says something else."""
    (length,) = struct.unpack_from("<Q", payload)
    header = json.loads(payload[8 : 8 + length])
    if rng.random() < 0.3:
        text = json_mutated(json.dumps(header), rng)
    else:
        header["__metadata__"]["records"] = json_mutated(header["__metadata__"]["records"], rng)
        text = json.dumps(header)
    written = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(written)) + written + payload[8 + length :]


def _frame(payload: bytes) -> bytes:
    return struct.pack("<4sI32s", b"MEJ1", len(payload), hashlib.sha256(payload).digest()) + payload


def _places(value: Any) -> list[tuple[Any, Any]]:  # noqa: ANN401 - any JSON
    """Return every container and key of a JSON value."""
    found = []
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        found.append((value, key))
        if isinstance(value[key], dict | list) and value[key]:
            found += _places(value[key])
    return found
