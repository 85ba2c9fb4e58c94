"""The rows of a fact that an edit is tried on, in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mobiedit.runtime.prompt_rows import EditRequest, build_rows
from mobiedit.runtime.tokenizer import Tokenizer

_NO_LIMIT = 10**6


@dataclass(frozen=True)
class ProbeRow:
    """One row.

    Attributes
    ----------
    ids
        Its tokens, the target's but the last included.
    subject
        Index of the subject's last token, where it is known.
    readouts
        Where the answer's tokens are read.
    target
        The answer's tokens; none for a neighbour, whose answer is the model's own.
    """

    ids: tuple[int, ...]
    subject: int
    readouts: tuple[int, ...]
    target: tuple[int, ...]


@dataclass(frozen=True)
class ProbeFact:
    """A fact: the bare prompt and prefixed ones, another wording, and a neighbour."""

    rewriting: tuple[ProbeRow, ...]
    paraphrase: ProbeRow
    neighbour: ProbeRow

    @property
    def rows(self) -> tuple[ProbeRow, ...]:
        """The rewriting rows, the paraphrase, the neighbour."""
        return (*self.rewriting, self.paraphrase, self.neighbour)


def probe_fact(request: EditRequest, prefixes: Sequence[str], tokenizer: Tokenizer) -> ProbeFact:
    """Tokenize a fact with a paraphrase and a prompt to keep.

    Parameters
    ----------
    prefixes
        Templates with ``{}`` where the prompt stands; the first is ``{}`` alone.
    """
    rows = build_rows(request, prefixes, tokenizer, _NO_LIMIT)
    rewriting = [ProbeRow(row.ids, row.subject_index, row.readouts, rows.target) for row in rows.rewriting]
    text = request.fill(request.paraphrases[0])
    encoding = tokenizer.encode(f"{text} {request.target.strip()}")
    start = encoding.first_token_from(len(text))
    kept = tokenizer.encode(request.fill(request.keep[0])).ids
    return ProbeFact(
        tuple(rewriting),
        ProbeRow(encoding.ids[:-1], 0, tuple(range(start - 1, len(encoding.ids) - 1)), encoding.ids[start:]),
        ProbeRow(kept, 0, (len(kept) - 1,), ()),
    )
