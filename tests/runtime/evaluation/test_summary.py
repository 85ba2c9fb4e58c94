"""Means, intervals and the worst tenth, by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobiedit.runtime.costs import Cost
from mobiedit.runtime.evaluation import MeasuredRecord, Metrics
from mobiedit.runtime.evaluation.summary import bootstrap_interval, summarise, summarise_further

SCORES = {
    "efficacy",
    "exact_match",
    "exact_match_free",
    "paraphrase",
    "neighbourhood",
    "argmax_unchanged",
    "portability",
    "fluency",
}
COSTS = {"forwards", "token_layers", "wall_s", "peak_rss_bytes"}


def measured(post: Metrics, pre: Metrics | None = None, **more: Any) -> MeasuredRecord:
    both: dict[str, Any] = {"pre": (), "post": ()}
    return MeasuredRecord("0", "The fact is", "fact", "so", pre or Metrics(), post, both, both, "zo", **more)


def test_summary_has_exactly_the_agreed_keys() -> None:
    records = [measured(Metrics(paraphrase=1.0), cost=Cost(10, 20, 1.5, 30))]
    summary = summarise(records)
    assert set(summary) == SCORES | COSTS
    assert set(summary["efficacy"]) == {"pre", "post", "ci95"}
    assert set(summary["forwards"]) == {"median", "max"}
    json.dumps([summary, summarise_further(records)], allow_nan=False)


def test_entries_are_none_when_no_record_has_them() -> None:
    assert set(summarise([]).values()) == {None}
    summary = summarise([measured(Metrics(), error="too long")])
    assert [name for name, entry in summary.items() if entry is None] == [
        "paraphrase",
        "neighbourhood",
        "argmax_unchanged",
        "portability",
        "fluency",
        *("forwards", "token_layers", "wall_s", "peak_rss_bytes"),
    ]


def test_scores_are_means_over_the_records_that_have_them() -> None:
    records = [
        measured(Metrics(efficacy=True, paraphrase=1.0), Metrics(efficacy=True, paraphrase=0.5)),
        measured(Metrics(efficacy=True, paraphrase=0.25), Metrics(paraphrase=0.0)),
        measured(Metrics(efficacy=True)),
        measured(Metrics(efficacy=False), error="refused"),
    ]
    summary = summarise(records)
    assert (summary["efficacy"]["pre"], summary["efficacy"]["post"]) == (0.25, 0.75)
    assert (summary["paraphrase"]["pre"], summary["paraphrase"]["post"]) == (0.25, 0.625)
    assert summary["paraphrase"]["ci95"] == [0.25, 1.0]
    assert summary["efficacy"]["ci95"] == list(bootstrap_interval([1, 1, 1, 0]))


def test_costs_are_medians_and_maxima_over_the_edits_that_were_made() -> None:
    costs = [Cost(10, 7, 1.0, 5), Cost(40, 9, 0.5, 6), Cost(20, 8, 3.0, 7)]
    summary = summarise([*(measured(Metrics(), cost=cost) for cost in costs), measured(Metrics(), error="refused")])
    assert summary["forwards"] == {"median": 20, "max": 40}
    assert summary["token_layers"] == {"median": 8, "max": 9}
    assert summary["wall_s"] == {"median": 1.0, "max": 3.0}
    assert summary["peak_rss_bytes"] == {"median": 6, "max": 7}


def test_worst_decile_is_the_tenth_with_the_least_probable_targets() -> None:
    records = [
        measured(Metrics(target_probability=i / 30, exact_match=i == 1), cost=Cost(10 * i**2, 1, 1.0, 1))
        for i in range(30)
    ]
    further = summarise_further([*records[7:], *records[:7]])
    worst = further["worst_decile"]
    assert (worst["records"], worst["forwards"]) == (3, 10)  # the median of 0, 10 and 40
    assert (worst["target_probability"], worst["exact_match"]) == (pytest.approx(1 / 30), pytest.approx(1 / 3))
    assert summarise_further(records[:11])["worst_decile"]["records"] == 2
    assert summarise_further(records[3:4])["worst_decile"]["target_probability"] == 0.1


def test_share_that_would_be_committed_leaves_out_failures_and_refusals() -> None:
    records = [
        measured(Metrics(token_accuracy=0.5)),
        measured(Metrics(token_accuracy=1.0), failures=("the prompt does not lead to the target",)),
        measured(Metrics(), error="refused"),
        measured(Metrics()),
    ]
    further = summarise_further(records)
    assert (further["committed"], further["refused"]) == (0.5, 1)
    assert further["token_accuracy"]["post"] == 0.375


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0, 9))
def test_interval_lies_between_the_extremes_and_repeats(values: list[float], seed: int) -> None:
    low, high = bootstrap_interval(values, seed=seed)
    assert min(values) - 1e-12 <= low <= high <= max(values) + 1e-12
    assert (low, high) == bootstrap_interval(values, seed=seed)


def test_interval_is_the_normal_one_when_there_are_many_values() -> None:
    values = np.random.default_rng(0).random(2000) < 0.3
    mean, half = values.mean(), 1.96 * values.std() / np.sqrt(2000)
    # The quantiles of 1,000 resamples are good to about a twentieth of the interval.
    assert bootstrap_interval(values.tolist()) == pytest.approx((mean - half, mean + half), abs=0.15 * half)
