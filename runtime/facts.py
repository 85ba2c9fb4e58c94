"""Which edits teach the same fact."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable
from typing import Protocol, TypeVar

FactKey = tuple[str, str]


class Fact(Protocol):
    """What teaches a fact."""

    @property
    def fact(self) -> FactKey:
        """The fact's key."""


F = TypeVar("F", bound=Fact)


def fact_key(prompt: str, subject: str) -> FactKey:
    """Return what two edits of the same fact have in common: prompt and subject, whatever their case and spaces."""
    return _normalised(prompt), _normalised(subject)


def of_subject(edits: Iterable[F], fact: FactKey) -> tuple[F, ...]:
    """Return the edits that teach other facts of the same subject."""
    return tuple(edit for edit in edits if edit.fact[1] == fact[1] and edit.fact != fact)


def without(edits: Iterable[F], facts: Collection[FactKey]) -> tuple[F, ...]:
    """Return the edits that teach none of these facts."""
    return tuple(edit for edit in edits if edit.fact not in facts)


def _normalised(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())  # again: folding may leave the normal form
