"""One record as it was measured: before the edit, after it, and what the edit cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..costs import Cost
from . import metrics
from .cached_reader import CachedReader
from .easyedit import easyedit_metrics
from .fluency import n_gram_entropy, sampled
from .records import EvaluationRecord


@dataclass(frozen=True)
class Metrics:
    """All metrics of one record at one moment; None where the record has nothing to tell it by.

    The functions of `metrics` and `fluency` define them.
    """

    efficacy: bool = False
    exact_match: bool = False
    exact_match_free: bool = False
    token_accuracy: float = 0.0
    target_probability: float = 0.0
    paraphrase: float | None = None
    neighbourhood: float | None = None
    argmax_unchanged: float | None = None
    portability: float | None = None
    inferences_unchanged: float | None = None
    fluency: float | None = None


@dataclass(frozen=True)
class Observation:
    """A model at one moment: the metrics, its most probable tokens behind the bare prompt, and its own answer.

    ``easyedit`` are `easyedit_metrics`.
    """

    metrics: Metrics = Metrics()
    top_tokens: tuple[tuple[str, float], ...] = ()
    answer: str = ""
    easyedit: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MeasuredRecord:
    """What the result file holds of a record.

    Attributes
    ----------
    pre, post
        The metrics before the edit and with it in force.
    top_tokens, answer
        By "pre" and "post": the most probable tokens behind the bare prompt with their probabilities, and the greedy
        answer to it.
    failures
        Why the edit would not have been committed. It is measured all the same.
    looks
        Forwards, loss and target's probability on the way of the search.
    error
        Why there was no edit, where it was refused.
    easyedit
        By "pre" and "post": `easyedit_metrics`.
    """

    identifier: str
    prompt: str
    subject: str
    target: str
    pre: Metrics
    post: Metrics
    top_tokens: dict[str, tuple[tuple[str, float], ...]]
    answer: dict[str, str]
    optimizer: str
    failures: tuple[str, ...] = ()
    steps: int = 0
    stopped_early: bool = False
    looks: tuple[tuple[int, float, float], ...] = ()
    cost: Cost | None = None
    error: str | None = None
    easyedit: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def committed(self) -> bool:
        """Whether `Bundle.edit` would have committed the edit."""
        return self.error is None and not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return asdict(self)

    @staticmethod
    def from_dict(raw: dict[str, Any]) -> MeasuredRecord:
        """Return the record of plain data; TypeError if it is none."""
        parts: dict[str, Any] = {
            "pre": Metrics(**raw.get("pre", {})),
            "post": Metrics(**raw.get("post", {})),
            "cost": Cost(**raw["cost"]) if raw.get("cost") else None,
        }
        return MeasuredRecord(**{**raw, **parts})


def observe(
    record: EvaluationRecord, now: CachedReader, before: CachedReader, fluency_tokens: int, seed: tuple[int, ...]
) -> Observation:
    """Measure a model on a record.

    Parameters
    ----------
    now, before
        The model, and the same model before the edit.
    fluency_tokens
        Length of the text that fluency is told by; 0 leaves it out.
    seed
        What the sampling of that text starts from.

    Raises
    ------
    RequestError
        When a prompt cannot be read: too long, or unknown characters.
    """
    text = sampled(now.reader, record.prompt, fluency_tokens, seed) if fluency_tokens else ()
    measured = Metrics(
        efficacy=metrics.efficacy(record, now, before),
        exact_match=metrics.exact_match(record, now),
        exact_match_free=metrics.exact_match_free(record, now),
        token_accuracy=metrics.token_accuracy(record, now),
        target_probability=metrics.target_probability(record, now),
        paraphrase=metrics.paraphrase(record, now),
        neighbourhood=metrics.neighbourhood(record, now, before),
        argmax_unchanged=metrics.argmax_unchanged(record, now, before),
        portability=metrics.portability(record, now),
        inferences_unchanged=metrics.inferences_unchanged(record, now, before),
        fluency=n_gram_entropy(text) if fluency_tokens else None,
    )
    decode = now.reader.decode
    top = tuple((decode([token]), p) for token, p in now.read(record.prompt, record.target).top)
    answer = decode(metrics.free_answer(record, now)[: metrics.ANSWER_TOKENS])
    return Observation(measured, top, answer, easyedit_metrics(record, now, before, text))
