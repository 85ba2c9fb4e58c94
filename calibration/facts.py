"""Facts to learn from: prompts with a subject and a target, drawn at random.

Gradients of facts have much in common that gradients at random places of plain text lack: a lens fitted on the latter
has a third of the cosine (docs/experiments). So the project ships relations of its own, and a user may give others.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from mobiedit.runtime.evaluation import read_records
from mobiedit.runtime.prompt_rows import EditRequest
from mobiedit.runtime.tokenizer import Encoding, Tokenizer

_MAX_TARGET = 6  # tokens of a target that is cut out of text
_LONGEST_TAIL = 7  # tokens between a subject and its answer, in rows cut out of text
_CONTEXT = 16


@dataclass(frozen=True)
class Fact:
    """A prompt with its subject written out, where the subject ends in it, and the target that shall follow.

    ``aside`` asks the same subject for something else: what the model says there shall stay.
    """

    text: str
    subject_end: int
    target: str
    aside: Fact | None = None


@dataclass(frozen=True)
class FactRow:
    """A fact in tokens: the prompt's, the index of the subject's last one, and the target's; and its aside."""

    prompt: tuple[int, ...]
    subject: int
    target: tuple[int, ...]
    aside: FactRow | None = None


@dataclass(frozen=True)
class FactMix:
    """Shares of rows.

    Attributes
    ----------
    plain
        Prompt and subject are cut out of plain text at a random place.
    borrowed
        Of the others: the target is cut out of plain text, so that the lens meets many words.
    prefixed
        Of the others: another sentence stands in front of the prompt.
    """

    plain: float = 0.1
    borrowed: float = 0.3
    prefixed: float = 0.3


class FactSource(Protocol):
    """Where facts come from."""

    def __call__(self, rng: random.Random) -> Fact:
        """Return a random fact."""


def own_relations() -> FactSource:
    """Return the project's relations: any subject of a kind may have any target of another.

    An aside is another relation of the same kind of subject whose targets are of another kind.
    """
    data = _relations()
    relations, kinds = data["relations"], data["kinds"]

    def fact(
        relation: dict[str, str], prompt: str, subject: str, rng: random.Random, aside: Fact | None = None
    ) -> Fact:
        end = prompt.index("{}") + len(subject)
        return Fact(_fill(prompt, subject), end, rng.choice(kinds[relation["target"]]), aside)

    def draw(rng: random.Random) -> Fact:
        chosen = rng.choice(relations)
        subject = rng.choice(kinds[chosen["subject"]])
        others = [r for r in relations if r["subject"] == chosen["subject"] and r["target"] != chosen["target"]]
        aside = None
        if others:
            other = rng.choice(others)
            wordings = [other[name] for name in ("prompt", "paraphrase") if name in other]
            aside = fact(other, rng.choice(wordings), subject, rng)
        return fact(chosen, chosen["prompt"], subject, rng, aside)

    return draw


def facts_of_file(path: Path) -> FactSource:
    """Return the facts of a file of evaluation records (CounterFact, ZsRE or personal).

    An aside is "<subject> is a" with another record's target.

    Raises
    ------
    RequestError
        When the file is not one.
    """
    records = read_records(path).records

    def draw(rng: random.Random) -> Fact:
        request, other = (rng.choice(records).request for _ in range(2))
        subject = request.subject
        aside = Fact(f"{subject} is a", len(subject), other.target)
        return Fact(request.text, request.prompt.index("{}") + len(subject), request.target, aside)

    return draw


def probe_requests(count: int, seed: int, path: Path | None = None) -> list[EditRequest]:
    """Return facts to try an edit on, each with another wording, and the prompt of a neighbour that shall stay.

    Parameters
    ----------
    path
        A file of evaluation records. Those with a paraphrase and a neighbour are taken; where they are too few, the
        project's relations fill up: there, a neighbour is the same prompt with another subject of its kind.

    Raises
    ------
    RequestError
        When the file is not one.
    """
    rng = random.Random(seed)
    records = [r for r in read_records(path).records if r.paraphrases and r.neighbours] if path else []
    requests = [
        replace(record.request, paraphrases=record.paraphrases[:1], keep=(record.neighbours[0].prompt,))
        for record in rng.sample(records, min(count, len(records)))
    ]
    data = _relations()
    reworded = [relation for relation in data["relations"] if "paraphrase" in relation]
    for relation in rng.sample(reworded, min(count - len(requests), len(reworded))):
        prompt, paraphrase = relation["prompt"], relation["paraphrase"]
        subject, neighbour = rng.sample(data["kinds"][relation["subject"]], 2)
        target = rng.choice(data["kinds"][relation["target"]])
        other, kept = _fill(paraphrase, subject), _fill(prompt, neighbour)
        requests.append(EditRequest(prompt, _spelled(prompt, subject), target, paraphrases=(other,), keep=(kept,)))
    return requests


def _relations() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(files(__package__).joinpath("relations.json").read_text("utf-8"))
    return data


def _fill(prompt: str, subject: str) -> str:
    return prompt.replace("{}", _spelled(prompt, subject))


def _spelled(prompt: str, subject: str) -> str:
    """Return a subject as it stands in a prompt: with a capital where it opens one."""
    return subject[:1].upper() + subject[1:] if prompt.startswith("{}") else subject


class FactSampler:
    """Draws rows, the same ones for the same seed.

    Parameters
    ----------
    lines
        Plain text.
    prefixes
        Templates with ``{}`` that stand around a prompt.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        source: FactSource,
        lines: Sequence[str],
        prefixes: Sequence[str],
        mix: FactMix,
        seed: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._source = source
        self._lines = [(line, encoding) for line in lines if len((encoding := tokenizer.encode(line)).ids) > 8]
        self._prefixes = prefixes
        self._mix = mix
        self._rng = random.Random(seed)

    def rows(self, count: int) -> list[FactRow]:
        """Return the next ``count`` rows."""
        return [self._row() for _ in range(count)]

    def _row(self) -> FactRow:
        rng, mix = self._rng, self._mix
        if not self._lines:
            return self._of_fact(self._source(rng))
        if rng.random() < mix.plain:
            return self._of_text()
        row = self._of_fact(self._source(rng))
        return replace(row, target=self._span()) if rng.random() < mix.borrowed else row

    def _of_fact(self, fact: Fact) -> FactRow:
        prefix = self._rng.choice(self._prefixes) if self._rng.random() < self._mix.prefixed else "{}"
        row = self._tokenized(fact, prefix)
        return replace(row, aside=self._tokenized(fact.aside, "{}")) if fact.aside else row

    def _tokenized(self, fact: Fact, prefix: str) -> FactRow:
        text, subject_end = prefix.replace("{}", fact.text), prefix.index("{}") + fact.subject_end
        encoding = self._tokenizer.encode(f"{text} {fact.target}")
        start = encoding.first_token_from(len(text))
        return FactRow(encoding.ids[:start], encoding.last_token_before(subject_end), encoding.ids[start:])

    def _of_text(self) -> FactRow:
        rng = self._rng
        _, encoding = rng.choice(self._lines)
        last = rng.randint(3, min(len(encoding.ids) - 1, _CONTEXT + 2))
        subject = max(0, last - rng.randint(0, _LONGEST_TAIL))
        start = max(0, last - rng.randint(last - subject, _CONTEXT))
        return FactRow(encoding.ids[start : last + 1], subject - start, self._span())

    def _span(self) -> tuple[int, ...]:
        """Return a few tokens of text that begin a word; short ones are the most frequent."""
        rng = self._rng
        line, encoding = rng.choice(self._lines)
        start = rng.choice(_word_starts(line, encoding) or range(len(encoding.ids)))
        length = min(rng.randint(1, _MAX_TARGET), rng.randint(1, _MAX_TARGET))
        return encoding.ids[start : start + length]


def _word_starts(line: str, encoding: Encoding) -> list[int]:
    return [i for i, (start, _) in enumerate(encoding.spans) if line[start : start + 1] == " "]
