"""The published search costs what it is said to cost, and searches where it is said to."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobiedit.runtime import EditConfig, PrefixCache
from mobiedit.runtime.configuration import Optimizer
from mobiedit.runtime.readout_loss import LossTerms
from mobiedit.runtime.search import SearchTask
from scripts.published_baseline import main
from scripts.support.published import PublishedConfig, _directions, _gradient, published

Task = Callable[[EditConfig], SearchTask]


@pytest.mark.parametrize("cache", [PrefixCache.OFF, PrefixCache.STALE])
def test_three_forwards_a_direction(task: Task, cache: PrefixCache) -> None:
    captured = task(EditConfig(optimizer=Optimizer.ZO, prefix_cache=cache))
    before = captured.problem.meter.forwards
    found = published(captured, PublishedConfig(steps=4, look_every=2))
    assert [look.forwards for look in found.looks] == [1, 32, 63]
    assert captured.problem.meter.forwards - before == 3 * 5 * 4 + 3
    assert (found.steps, found.stopped_early) == (4, False)


def test_directions_are_210_at_most() -> None:
    sets = {_directions(seed, 5, 8).tobytes() for seed in range(42)}
    assert len(sets) == 42
    np.testing.assert_array_equal(_directions(3, 5, 8), _directions(3, 5, 8))


def test_gradient_is_the_sum_of_the_outer_differences(task: Task) -> None:
    captured = task(EditConfig())
    delta = np.zeros_like(captured.value)
    directions, mu = _directions(0, 2, len(delta)), 0.01
    gradient, loss = _gradient(captured, delta, directions, mu)
    offsets = np.float32(mu) * directions
    plus, minus = (captured.evaluate(delta + sign * offsets).total for sign in (1, -1))
    expected = ((plus - minus) / (2 * mu)) @ directions
    # The batch has another size, so that sums are in another order; a loss's last bits are divided by 2 mu.
    np.testing.assert_allclose(gradient, expected, atol=1e-5 / mu)
    assert loss == pytest.approx(float(captured.evaluate(delta[None]).total[0]), abs=1e-5)


def test_relative_steps_are_a_share_of_the_values_norm(task: Task) -> None:
    captured = task(EditConfig())
    found = published(captured, PublishedConfig(steps=1, learning_rate=0.1, relative=True))
    assert np.linalg.norm(found.delta) == pytest.approx(0.1 * captured.value_norm, rel=1e-4)


@pytest.mark.parametrize("asked", [False, True])
def test_search_stops_at_success_when_asked(task: Task, asked: bool) -> None:
    def learned(readouts: Any, kept: Any, deltas: Any) -> LossTerms:
        n, rows, tokens, _ = readouts.shape
        done = bool(deltas.any())  # every delta but the first one
        log_probs = np.full((n, rows, tokens), np.log(0.9 if done else 0.1), np.float32)
        leads = np.full((n, rows), 0.0 if done else -1.0, np.float32)
        return LossTerms(deltas.sum(axis=1), log_probs, leads, np.zeros(n, np.bool_))

    captured = replace(task(EditConfig()), loss=learned)
    config = PublishedConfig(steps=6, look_every=2, stop_at_success=asked, stop_probability=0.8, relative=True)
    found = published(captured, config)
    assert (found.steps, found.stopped_early) == ((2, True) if asked else (6, False))


@pytest.mark.parametrize("cache", [PrefixCache.OFF, PrefixCache.STALE])
def test_script_writes_a_benchmarks_file(
    cache: PrefixCache, fp32_bundle: Path, data: Path, tmp_path: Path, run: Any
) -> None:
    out = tmp_path / "published.json"
    given = [fp32_bundle, "--data", data, "--steps", 2, "--look-every", 1, "--limit", 1, "--json", out]
    result = run(main, [*given, "--fluency-tokens", 0, "--seed", 3, "--prefix-cache", cache.value])
    assert "a forward:" in result.output
    assert "1 edits" in result.output
    document = json.loads(out.read_text("utf-8"))
    assert document["settings"]["optimizer"] == "published"
    assert document["settings"]["edit"]["published"]["seed"] == 3
    assert document["settings"]["edit"]["prefix_cache"] == cache.value
    assert document["summary"]["forwards"]["median"] == 33
