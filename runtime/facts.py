"""Which edits teach the same fact."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable
from typing import Protocol, TypeVar

FactKey = tuple[str, str]


class Fact(Protocol):
    """What names a fact."""

    @property
    def prompt(self) -> str:
        """The wording, with ``{}`` for the subject."""

    @property
    def subject(self) -> str:
        """What the fact is about."""


F = TypeVar("F", bound=Fact)


def fact_key(prompt: str, subject: str) -> FactKey:
    """Return what two edits of the same fact have in common: prompt and subject, whatever their case and spaces."""
    return _normalised(prompt), _normalised(subject)


def of_subject(edits: Iterable[F], fact: FactKey) -> tuple[F, ...]:
    """Return the edits that teach other facts of the same subject."""
    keys = ((edit, fact_key(edit.prompt, edit.subject)) for edit in edits)
    return tuple(edit for edit, key in keys if key[1] == fact[1] and key != fact)


def without(edits: Iterable[F], facts: Collection[FactKey]) -> tuple[F, ...]:
    """Return the edits that teach none of these facts."""
    return tuple(edit for edit in edits if fact_key(edit.prompt, edit.subject) not in facts)


def _normalised(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())  # again: folding may leave the normal form
