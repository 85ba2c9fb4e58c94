"""Edits as JSON lines: one line an edit, its vectors as base64 of little-endian float32.

A line has all that the journal's record has, so an edit that is exported and imported is the same one to the bit.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import RequestError
from .journal_records import VECTORS, EditRecord
from .manifest_fields import finite, unique

REQUEST = ("prompt", "subject", "target", "paraphrases", "keep")
"""What a line of a request alone has."""

_FIELDS = (*REQUEST, *(f.name for f in fields(EditRecord) if f.name not in (*REQUEST, *VECTORS)), "vectors")
_SHOWN = 20


def to_lines(edits: Iterable[EditRecord], *, requests_only: bool = False) -> str:
    """Return edits as JSON lines, ASCII alone.

    Parameters
    ----------
    requests_only
        Leave out all but the request: what another model can be taught.
    """
    return "".join(json.dumps(_content(edit, requests_only), allow_nan=False) + "\n" for edit in edits)


def from_lines(data: bytes, base_sha256: str, sizes: tuple[int, int]) -> tuple[EditRecord, ...]:
    """Return the edits of JSON lines; empty lines are passed over.

    Parameters
    ----------
    base_sha256
        The model that they must be of.
    sizes
        F and D: the lengths of its keys and of its values.

    Raises
    ------
    RequestError
        If a line is malformed (every such line is named), or an edit is of another model.
    """
    edits, wrong = [], {}
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            try:
                edits.append(_edit(line))
            except RecursionError:
                wrong[number] = "nested too deeply"
            except ValueError as error:
                wrong[number] = " ".join(str(error).split())
    if wrong:
        numbers = ", ".join(map(str, list(wrong)[:_SHOWN])) + (
            f" and {len(wrong) - _SHOWN} more" * (len(wrong) > _SHOWN)
        )
        first = next(iter(wrong.values()))
        one = len(wrong) == 1
        raise RequestError(
            f"line{'' if one else 's'} {numbers}: no edit{'' if one else 's'} of `mobiedit export-edits`"
            f"{' ' if one else ', the first '}({first[:200]}); export again, or take out what is wrong; "
            "nothing was imported"
        )
    for edit in edits:
        if edit.base_sha256 != base_sha256:
            raise RequestError(
                f"edit {edit.edit_id} belongs to another model or edit layer: teach its request to this one with "
                "`mobiedit export-edits --requests-only` there and `mobiedit edit --batch` here; nothing was imported"
            )
        if (edit.key.size, edit.value.size) != sizes:
            raise RequestError(f"edit {edit.edit_id} has vectors of another model's shape: export it again")
    return tuple(edits)


def _content(edit: EditRecord, requests_only: bool) -> dict[str, Any]:
    names = REQUEST if requests_only else _FIELDS[:-1]
    content = {name: getattr(edit, name) for name in names}
    if not requests_only:
        content["vectors"] = {
            name: base64.b64encode(getattr(edit, name).astype("<f4").tobytes()).decode() for name in VECTORS
        }
    return content


def _edit(line: bytes) -> EditRecord:
    """Return the edit of a line; ValueError if it is none."""
    content = json.loads(line.decode("utf-8"), object_pairs_hook=unique, parse_constant=finite, parse_float=finite)
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    if missing := [name for name in _FIELDS if name not in content]:
        raise ValueError(f"{missing[0]} is missing")
    if unknown := content.keys() - set(_FIELDS):
        raise ValueError(f"{min(unknown)[:40]!r} is unknown")
    vectors = content.pop("vectors")
    if not isinstance(vectors, dict) or vectors.keys() != set(VECTORS):
        raise ValueError(f"vectors are not {', '.join(VECTORS)}")
    content.update(_vectors(vectors))
    return EditRecord(**content)


def _vectors(vectors: dict[str, Any]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    for name, text in vectors.items():
        try:
            data = base64.b64decode(text if isinstance(text, str) else "?", validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"{name} is not base64") from error
        if len(data) % 4:
            raise ValueError(f"{name} is not of 32-bit numbers")
        yield name, np.frombuffer(data, "<f4").astype(np.float32)
