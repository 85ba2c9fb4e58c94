"""What an edit did to the model, by the definitions of the literature.

Each function takes the record, the model as it is ``now``, and, where the metric compares, as it was ``before``. An
answer's probability is the geometric mean of its tokens', all of them teacher-forced behind the prompt (`Reader.read`).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from .cached_reader import CachedReader
from .records import EvaluationRecord, Format, Question

ANSWER_TOKENS = 10
"""Tokens of the free answer to the bare prompt, or as many as the target has if these are more."""

_SPAN = 5  # tokens of an unrelated prompt's continuation that shall stay


def efficacy(record: EvaluationRecord, now: CachedReader, before: CachedReader) -> bool:
    """Tell whether P(new) > P(old) on the bare prompt (Meng et al. 2022, ROME, section 3.3, "Efficacy Score").

    Old is the most probable of the record's old answers. Where there are none, it is the model's own greedy answer
    before the edit, as many tokens as the target has; where that is the target already, the target must stay so.
    """
    new = now.read(record.prompt, record.target)
    if record.old:
        return new.mean_log_prob > _old_log_prob(record, record.prompt, now)
    own = before.continuation(record.prompt, len(new.answer))
    if own == tuple(new.answer):
        return new.exact
    return new.mean_log_prob > now.read(record.prompt, own).mean_log_prob


def exact_match(record: EvaluationRecord, now: CachedReader) -> bool:
    """Tell whether all of the target's tokens are the most probable ones, teacher-forced."""
    return now.read(record.prompt, record.target).exact


def exact_match_free(record: EvaluationRecord, now: CachedReader) -> bool:
    """Tell whether greedy generation behind the bare prompt yields the target's tokens."""
    wanted = tuple(now.read(record.prompt, record.target).answer)
    return free_answer(record, now)[: len(wanted)] == wanted


def token_accuracy(record: EvaluationRecord, now: CachedReader) -> float:
    """Return the share of the target's tokens that are the most probable ones, teacher-forced.

    KnowEdit's "Edit Success" as EasyEdit computes it (Zhang et al. 2024).
    """
    return now.read(record.prompt, record.target).token_accuracy


def target_probability(record: EvaluationRecord, now: CachedReader) -> float:
    """Return the target's probability on the bare prompt, as the geometric mean of its tokens'."""
    return float(np.exp(now.read(record.prompt, record.target).mean_log_prob))


def paraphrase(record: EvaluationRecord, now: CachedReader) -> float | None:
    """Return how far the fact holds in other words, as a mean over the paraphrases; None without any.

    CounterFact: P(new) > P(old) (Meng et al. 2022, section 3.3, "Paraphrase Score"). ZsRE and personal: the target's
    token accuracy (KnowEdit's and EasyEdit's rephrase accuracy).
    """
    if record.format is Format.COUNTERFACT:
        return _mean(
            now.read(prompt, record.target).mean_log_prob > _old_log_prob(record, prompt, now)
            for prompt in record.paraphrases
        )
    return _mean(now.read(prompt, record.target).token_accuracy for prompt in record.paraphrases)


def neighbourhood(record: EvaluationRecord, now: CachedReader, before: CachedReader) -> float | None:
    """Return how far other facts stay, as a mean over the neighbours; None without any.

    CounterFact: P(old) > P(new), old being the neighbour's own answer (Meng et al. 2022, section 3.3, "Neighborhood
    Score"). ZsRE: the share of the answer's places whose most probable token is that of before the edit (KnowEdit's
    "Locality" as EasyEdit computes it). Personal: whether the next 5 greedy tokens of before the edit all stay so.
    """
    if record.format is Format.COUNTERFACT:
        return _mean(
            now.read(question.prompt, question.answers[0]).mean_log_prob
            > now.read(question.prompt, record.target).mean_log_prob
            for question in record.neighbours
        )
    places = (stayed(question, now, before) for question in record.neighbours)
    if record.format is Format.PERSONAL:
        return _mean(bool(each.all()) for each in places)
    return _mean(float(each.mean()) for each in places)


def argmax_unchanged(record: EvaluationRecord, now: CachedReader, before: CachedReader) -> float | None:
    """Return the share of neighbours whose most probable next token is that of before the edit; None without any."""
    return _mean(stayed(question, now, before)[0] for question in record.neighbours)


def portability(record: EvaluationRecord, now: CachedReader) -> float | None:
    """Return how far what follows from the fact holds; None without such questions.

    KnowEdit's "Portability" (Zhang et al. 2024) as EasyEdit computes it: token accuracy of the answer, the
    best of those that are acceptable, as a mean over the questions of a kind, then over kinds.
    """
    kinds = (
        _mean(
            max(now.read(question.prompt, answer).token_accuracy for answer in question.answers)
            for question in questions
        )
        for questions in record.portability.values()
    )
    return _mean(kind for kind in kinds if kind is not None)


def inferences_unchanged(record: EvaluationRecord, now: CachedReader, before: CachedReader) -> float | None:
    """Return how much of portability's answers reads as before, as a mean over the questions; None without any.

    The share of an answer's places whose most probable token is that of before the edit. No score, since what follows
    from a new fact may change; but where a model draws no inferences it tells sooner than portability what an edit
    does to other questions of its subject: few places are right, and all can change.
    """
    questions = (question for each in record.portability.values() for question in each)
    return _mean(float(stayed(question, now, before).mean()) for question in questions)


def free_answer(record: EvaluationRecord, now: CachedReader) -> tuple[int, ...]:
    """Return the tokens of the model's own answer to the bare prompt, by greedy decoding."""
    target = now.read(record.prompt, record.target).answer
    return now.answer(record.prompt, max(ANSWER_TOKENS, len(target)))


def stayed(question: Question, now: CachedReader, before: CachedReader) -> NDArray[np.bool_]:
    """Return [t] whether the most probable token is that of before, in each place of the answer.

    Where no answer is known, it is the model's own before the edit.
    """
    answer = question.answers[0] if question.answers else before.continuation(question.prompt, _SPAN)
    return np.asarray(now.read(question.prompt, answer).best == before.read(question.prompt, answer).best)


def _old_log_prob(record: EvaluationRecord, prompt: str, now: CachedReader) -> float:
    return max(now.read(prompt, answer).mean_log_prob for answer in record.old)


def _mean(values: Iterable[float]) -> float | None:
    listed = [float(value) for value in values]
    return sum(listed) / len(listed) if listed else None
