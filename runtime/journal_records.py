"""What a journal records: edits, their undoing, and that one was forgotten."""

import math
import re
import secrets
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .facts import FactKey, fact_key

VECTORS = ("key", "value", "delta", "direction")
"""The fields of an edit that are arrays."""

_EDIT_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, eq=False)
class Record:
    """What every record states; ValueError if a field is not of its form (`created`: ISO 8601 in UTC)."""

    edit_id: str
    created: str

    def __post_init__(self) -> None:
        """Refuse a record that could not be read back."""
        for field in fields(self):
            if field.type is str and not isinstance(getattr(self, field.name), str):
                raise ValueError(f"{field.name} is not a text")
        if not _EDIT_ID.fullmatch(self.edit_id):
            raise ValueError("edit_id is not 1 to 64 letters, digits, _ or -")
        if datetime.fromisoformat(self.created).utcoffset() != timedelta(0):
            raise ValueError("created is not a time in UTC")


@dataclass(frozen=True, eq=False)
class UndoRecord(Record):
    """The withdrawal of an edit."""


@dataclass(frozen=True, eq=False)
class ForgetRecord(Record):
    """What is left of an edit that was forgotten: its identifier, so that no other journal brings it back."""


@dataclass(frozen=True, eq=False)
class EditRecord(Record):
    """A fact that was taught; ValueError as `Record`, or if a field is unfit.

    Attributes
    ----------
    prompt, subject, target, paraphrases, keep
        The request, as in `EditRequest`.
    base_sha256
        The model that the edit is for: the manifest's ``edit_base``.
    method
        How it is fitted in among other edits: a value of `Method`.
    gate
        The activation from which on a gated edit acts in full, in 0 to 1; None for one that acts in proportion.
    batch
        What the edits have in common that were taught at once; None for an edit of its own.
    leverage
        ``k*^T C^-1 k*``, above 0: how unlike the calibration text's keys k* is.
    report
        What the search and the checks found, before and after.
    key
        [F] k*; where it was told from others, the mixture of keys that stands for it (`contrasted_key`).
    value
        [D] v*: the value at the subject before this edit, and delta.
    delta
        [D] what the edit adds to the value at k*.
    direction
        [F] ``C^-1 k* / leverage``: the right factor of the rank-one update, where no other edit is.
    """

    prompt: str
    subject: str
    target: str
    paraphrases: tuple[str, ...]
    keep: tuple[str, ...]
    base_sha256: str
    tool_version: str
    optimizer: str
    method: str
    gate: float | None
    batch: str | None
    leverage: float
    report: dict[str, Any]
    key: NDArray[np.float32]
    value: NDArray[np.float32]
    delta: NDArray[np.float32]
    direction: NDArray[np.float32]

    def __post_init__(self) -> None:
        """Refuse a record that could not be read back."""
        super().__post_init__()
        if not isinstance(self.report, dict):
            raise ValueError("report is not a dictionary")
        if not (self.batch is None or (isinstance(self.batch, str) and _EDIT_ID.fullmatch(self.batch))):
            raise ValueError("batch is not 1 to 64 letters, digits, _ or -")
        if not isinstance(self.leverage, float) or not (math.isfinite(self.leverage) and self.leverage > 0):
            raise ValueError("leverage is not a number above 0")
        if not (self.gate is None or (isinstance(self.gate, float) and 0 < self.gate <= 1)):
            raise ValueError("gate is not a number in 0 to 1")
        for name in ("paraphrases", "keep"):
            texts = getattr(self, name)
            if not isinstance(texts, (tuple, list)) or not all(isinstance(text, str) for text in texts):
                raise ValueError(f"{name} is not a list of texts")
            object.__setattr__(self, name, tuple(texts))  # JSON has lists alone
        for name in VECTORS:
            vector = getattr(self, name)
            if not isinstance(vector, np.ndarray) or vector.dtype != np.float32 or vector.ndim != 1 or not vector.size:
                raise ValueError(f"{name} is not a one-dimensional float32 array")
            if not np.isfinite(vector).all():
                raise ValueError(f"{name} holds NaN or infinity")
        if self.key.shape != self.direction.shape or self.value.shape != self.delta.shape:
            raise ValueError("key and direction, or value and delta, differ in length")

    @cached_property
    def fact(self) -> FactKey:
        """What it has in common with other edits of the same fact."""
        return fact_key(self.prompt, self.subject)


def new_edit_id() -> str:
    """Return a random identifier of 8 hexadecimal digits."""
    return secrets.token_hex(4)
