"""One observation holds what the metrics say, and a measured record survives its JSON."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from mobiedit.runtime import Bundle
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.evaluation import EvaluationRecord, MeasuredRecord, Metrics, metrics
from mobiedit.runtime.evaluation.cached_reader import CachedReader
from mobiedit.runtime.evaluation.fluency import fluency
from mobiedit.runtime.evaluation.measured import observe

Records = Callable[..., EvaluationRecord]
Models = Callable[[EvaluationRecord], tuple[CachedReader, CachedReader]]


@pytest.mark.parametrize("record_format", ["counterfact", "zsre", "personal"])
def test_observation_is_what_the_metrics_say(record: Records, models: Models, record_format: str) -> None:
    fact = record(record_format)
    now, before = models(fact)
    seen = observe(fact, now, before, 20, (0, 1))
    assert seen.metrics == Metrics(
        metrics.efficacy(fact, now, before),
        metrics.exact_match(fact, now),
        metrics.exact_match_free(fact, now),
        metrics.token_accuracy(fact, now),
        metrics.target_probability(fact, now),
        metrics.paraphrase(fact, now),
        metrics.neighbourhood(fact, now, before),
        metrics.argmax_unchanged(fact, now, before),
        metrics.portability(fact, now),
        metrics.inferences_unchanged(fact, now, before),
        fluency(now.reader, fact.prompt, 20, (0, 1)),
    )
    missing = {name for name, value in vars(seen.metrics).items() if value is None}
    assert missing == ({"portability", "inferences_unchanged"} if record_format == "counterfact" else set())


def test_observation_tells_the_top_tokens_and_the_answer(record: Records, fp32_model: Bundle) -> None:
    model = CachedReader(fp32_model.reader())
    seen = observe(record("counterfact"), model, model, 0, (0,))
    assert seen.metrics.fluency is None
    assert seen.answer == fp32_model.ask(record("counterfact").prompt, 10)
    assert len(seen.top_tokens) == 5
    assert seen.answer.startswith(seen.top_tokens[0][0])
    probabilities = [p for _, p in seen.top_tokens]
    assert probabilities == sorted(probabilities, reverse=True)


def test_observation_is_refused_when_a_prompt_is_too_long(record: Records, fp32_model: Bundle) -> None:
    model = CachedReader(fp32_model.reader())
    with pytest.raises(RequestError, match="the bundle's context is 256"):
        observe(record("counterfact", rephrase_prompt="word " * 400), model, model, 0, (0,))


@pytest.mark.parametrize("raw", [{}, {"identifier": "0"}, {"pre": {"good": True}}])
def test_plain_data_is_refused_when_it_is_no_record(raw: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        MeasuredRecord.from_dict(json.loads(json.dumps(raw)))
