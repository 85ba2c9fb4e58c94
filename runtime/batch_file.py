"""A batch of facts to teach as JSON lines: a line a fact, so that the number of a line is the number of its fact."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from reprlib import repr as short
from typing import Any

from .errors import RequestError
from .files import storage_errors
from .manifest_fields import unique
from .prompt_rows import EditRequest

STANDARD_INPUT = "-"

_TEXTS = ("prompt", "subject", "target")
_LISTS = ("paraphrases", "keep")
# What `mobiedit export-edits` writes beside the request, for the model that the edits were made with.
_OF_EDITS = (
    *("edit_id", "created", "method", "gate", "batch", "leverage", "base_sha256", "tool_version", "optimizer"),
    *("report", "key", "value", "delta", "direction", "vectors"),
)


def read_batch(source: str) -> tuple[EditRequest, ...]:
    """Return the requests of a file, or of standard input where ``source`` is ``-``.

    Raises
    ------
    RequestError
        When there is no such file, or a line is no request; the message names the line.
    StorageError
        When the file may not be read.
    """
    if source == STANDARD_INPUT:
        return parse_batch(sys.stdin.buffer.read(), "standard input")
    try:
        with storage_errors(f"read {source}"):
            data = Path(source).read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError) as error:
        raise RequestError(f"{source} is not a file: give a file with a JSON object a line") from error
    return parse_batch(data, Path(source).name)


def parse_batch(data: bytes, name: str) -> tuple[EditRequest, ...]:
    """Return the requests of a file's bytes; ``name`` stands for it in messages. RequestError as of `read_batch`."""
    lines = data.removeprefix(b"\xef\xbb\xbf").rstrip().split(b"\n")  # text may hold other characters that end a line
    if lines == [b""]:
        raise RequestError(f"{name} is empty: give a JSON object with prompt, subject and target a line")
    return tuple(_request(line, f"{name}, line {number}") for number, line in enumerate(lines, 1))


def _request(line: bytes, where: str) -> EditRequest:
    raw = _object(line, where)
    unknown = sorted(raw.keys() - {*_TEXTS, *_LISTS, *_OF_EDITS})
    if unknown:
        raise RequestError(
            f"{where} has {short(unknown[0])}, which no request has: give {', '.join((*_TEXTS, *_LISTS))}"
        )
    for field in _TEXTS:
        if field not in raw:
            raise RequestError(f"{where} has no {field!r}: give {', '.join(_TEXTS)}")
        if not isinstance(raw[field], str):
            raise RequestError(f"{where}: {field!r} must be a text, not {short(raw[field])}")
    for field in _LISTS:
        texts = raw.setdefault(field, [])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise RequestError(f"{where}: {field!r} must be a list of texts, not {short(texts)}")
    try:
        return EditRequest(*(raw[field] for field in _TEXTS), *(tuple(raw[field]) for field in _LISTS))
    except RequestError as error:
        raise RequestError(f"{where}: {error}") from error


def _object(line: bytes, where: str) -> dict[str, Any]:
    if not line.strip():
        raise RequestError(f"{where} is empty: take it out, so that each line is a fact")
    try:
        raw = json.loads(line.decode(), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise RequestError(f"{where} is not UTF-8: save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where} is not JSON ({error}): give an object with prompt, subject and target") from error
    if not isinstance(raw, dict):
        raise RequestError(f"{where} must be an object with prompt, subject and target, not {short(raw)}")
    return raw
