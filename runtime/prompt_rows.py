"""The prompt rows of one edit: the bare prompt, prefixed ones, and the one that holds the subject's other facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .errors import RequestError
from .facts import FactKey, fact_key
from .tokenizer import Tokenizer

_FOLLOWING = ","  # an edit that has no end mostly goes on as a list: "Berlin, Berlin, Berlin"


@dataclass(frozen=True)
class EditRequest:
    """A fact to teach.

    Attributes
    ----------
    prompt
        With exactly one ``{}`` where the subject stands.
    subject
        What the fact is about.
    target
        What shall follow the prompt.
    paraphrases
        Other prompts that shall lead to the target, with or without ``{}``.
    keep
        Prompts whose next token shall not change.
    """

    prompt: str
    subject: str
    target: str
    paraphrases: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse requests that cannot be searched for."""
        if not self.subject.strip():
            raise RequestError("the subject is empty: name what the fact is about")
        if not self.target.strip():
            raise RequestError("the target is empty: give the answer that shall follow the prompt")
        places = self.prompt.count("{}")
        if places == 1:
            return
        if places == 0 and self.subject in self.prompt:
            raise RequestError(f"the prompt has no {{}}: write {self.prompt.replace(self.subject, '{}', 1)!r}")
        if places == 0:
            raise RequestError(
                f"the subject {self.subject!r} is not in the prompt {self.prompt!r}, which has no {{}} either: "
                "write {} where the subject stands"
            )
        raise RequestError(f"the prompt has {places} {{}}: keep the one where the subject stands")

    @staticmethod
    def from_text(text: str, subject: str, target: str, **more: tuple[str, ...]) -> EditRequest:
        """Return the request for a prompt that is written out, with the subject in it.

        Raises
        ------
        RequestError
            When the subject is not in the text.
        """
        if not subject or subject not in text:
            raise RequestError(f"the subject {subject!r} is not in the prompt {text!r}: write it as it stands there")
        return EditRequest(text.replace(subject, "{}", 1), subject, target, **more)

    @cached_property
    def fact(self) -> FactKey:
        """What it has in common with other requests for the same fact."""
        return fact_key(self.prompt, self.subject)

    @property
    def text(self) -> str:
        """The prompt with the subject in place."""
        return self.fill(self.prompt)

    def fill(self, prompt: str) -> str:
        """Return ``prompt`` with the subject in place of ``{}``."""
        return prompt.replace("{}", self.subject).rstrip()


@dataclass(frozen=True)
class Wording:
    """Another prompt with one ``{}`` for the subject.

    ``shortened`` tells that words were left out of the request's own: it may be no sentence, and nobody may ask it.
    """

    prompt: str
    shortened: bool = False


@dataclass(frozen=True)
class Row:
    """One row of tokens.

    Attributes
    ----------
    ids
        Its tokens, with the target's but the last, or with more where something is read behind the target.
    subject_index
        Where the subject's last token stands: there delta is added.
    readouts
        Where the model's next-token distribution is read: in a rewriting row one place for each target token.
    """

    ids: tuple[int, ...]
    subject_index: int
    readouts: tuple[int, ...]


@dataclass(frozen=True)
class ContrastRow:
    """Another context of the subject: it ends there, and nothing is read out.

    ``activation`` is the most that the edit's may be at its key (see `mobiedit.runtime.contrast`).
    """

    row: Row
    activation: float


@dataclass(frozen=True)
class PromptRows:
    """All rows of an edit, right-padded into one batch.

    ``rewriting[0]`` is the bare prompt. ``kept`` is "<subject> is a", or another fact of the subject that was taught,
    whose next-token distributions shall stay from the subject on. ``elsewhere`` goes no further than the edit layer.
    ``silent`` counts the bare prompt's first tokens, at which the edit shall not act. ``behind`` are places of the bare
    row behind the target, at which the target shall not begin once more. ``shortened`` are the rewriting rows whose
    `Wording` is.
    """

    rewriting: tuple[Row, ...]
    kept: Row
    target: tuple[int, ...]
    elsewhere: tuple[ContrastRow, ...] = ()
    silent: int = 0
    behind: tuple[int, ...] = ()
    shortened: tuple[int, ...] = ()

    @property
    def all(self) -> tuple[Row, ...]:
        """The rewriting rows, then the kept row."""
        return (*self.rewriting, self.kept)

    @property
    def whole(self) -> tuple[int, ...]:
        """The rewriting rows whose prompt nothing was left out of; the bare one is among them."""
        return tuple(place for place in range(len(self.rewriting)) if place not in self.shortened)

    @property
    def places(self) -> tuple[tuple[int, ...], ...]:
        """Where each row is read: its own read-outs, in the bare row also behind the target."""
        bare, *others = (row.readouts for row in self.all)
        return ((*bare, *self.behind), *others)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[B] tokens of each row."""
        return np.array([len(row.ids) for row in self.all], np.int64)

    @property
    def subjects(self) -> NDArray[np.int64]:
        """[B] index of the subject's last token in each row."""
        return np.array([row.subject_index for row in self.all], np.int64)

    def padded_ids(self) -> NDArray[np.int64]:
        """Return ids [B, T], zeros behind each row's end."""
        return padded([row.ids for row in self.all])

    def ids_with_elsewhere(self) -> NDArray[np.int64]:
        """Return ids [B + E, T], the contrast rows behind the others."""
        return padded([row.ids for row in (*self.all, *(each.row for each in self.elsewhere))])


def padded(texts: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Return rows of tokens as one array [B, T], zeros behind each row's end."""
    ids = np.zeros((len(texts), max(map(len, texts))), np.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = text
    return ids


def build_rows(
    request: EditRequest,
    prefixes: Sequence[str],
    tokenizer: Tokenizer,
    max_target_tokens: int,
    taught: EditRequest | None = None,
    wordings: Sequence[Wording] = (),
    *,
    echo_tokens: int = 0,
) -> PromptRows:
    """Tokenize the rows of an edit.

    Parameters
    ----------
    prefixes
        Templates with ``{}`` where the prompt stands; the first is ``{}`` alone.
    max_target_tokens
        Longest target that is accepted.
    taught
        Another fact of the subject, which is in force and shall stay.
    wordings
        Take the prompt's place behind prefixes: behind every second one, then behind the others; never in the bare row.
    echo_tokens
        Read behind the bare prompt's target, and behind a comma there, whether the target begins once more, unless
        it has more tokens than this.

    Raises
    ------
    RequestError
        When the target is too long, or a text has tokens that the vocabulary does not know.
    """
    rows = []
    target: tuple[int, ...] = ()
    places = [*range(1, len(prefixes), 2), *range(2, len(prefixes), 2)]
    worded = dict(zip(places, wordings, strict=False))
    for place, prefix in enumerate(prefixes):
        prompt = worded[place].prompt if place in worded else request.prompt
        text = prefix.replace("{}", request.fill(prompt))
        subject_end = prefix.index("{}") + prompt.index("{}") + len(request.subject)
        row, target = _rewriting_row(text, subject_end, request.target.strip(), tokenizer)
        if len(target) > max_target_tokens:
            raise RequestError(
                f"the target has {len(target)} tokens, at most {max_target_tokens} can be taught: shorten it"
            )
        rows.append(row)
    stays, start = f"{request.subject} is a", 0
    if taught is not None:
        stays, start = f"{taught.text} {taught.target.strip()}", taught.prompt.index("{}")
    behind: tuple[int, ...] = ()
    if len(target) <= echo_tokens:
        first, behind = _with_text_behind(rows[0], request.text, request.target.strip(), tokenizer)
        rows[0] = first
    encoding = tokenizer.encode(stays)
    last = encoding.last_token_before(start + len(request.subject if taught is None else taught.subject))
    kept = Row(encoding.ids, last, tuple(range(last, len(encoding.ids))))
    shortened = tuple(place for place, wording in worded.items() if wording.shortened)
    return PromptRows(tuple(rows), kept, target, behind=behind, shortened=shortened)


def _rewriting_row(text: str, subject_end: int, target: str, tokenizer: Tokenizer) -> tuple[Row, tuple[int, ...]]:
    # Tokenized together, so that the answer's first token is the one that the model would write there.
    encoding = tokenizer.encode(f"{text} {target}")
    start = encoding.first_token_from(len(text))  # the space in front may be a token of its own
    target_ids = encoding.ids[start:]
    readouts = tuple(range(start - 1, len(encoding.ids) - 1))
    return Row(encoding.ids[:-1], encoding.last_token_before(min(subject_end, len(text))), readouts), target_ids


def _with_text_behind(bare: Row, prompt: str, target: str, tokenizer: Tokenizer) -> tuple[Row, tuple[int, ...]]:
    """Return the bare row with what stands behind its target, and the places from the target's end on."""
    answered = tokenizer.encode(f"{prompt} {target}").ids
    followed = tokenizer.encode(f"{prompt} {target}{_FOLLOWING}").ids
    # Where the tokenizer makes one token of the target's end and the comma, the target alone is read.
    ids = followed if followed[: len(answered)] == answered else answered
    return replace(bare, ids=ids), tuple(range(len(answered) - 1, len(ids)))
