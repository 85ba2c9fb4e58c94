"""The forward-only search on losses that are known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mobiedit.runtime.configuration import ZerothOrderConfig
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.readout_loss import LossTerms
from mobiedit.runtime.search import Floats, Progress, SearchResult
from mobiedit.runtime.zeroth_order import random_directions, zeroth_order

WIDTH, NORM = 12, 5.0
GOAL = np.random.default_rng(7).standard_normal(WIDTH).astype(np.float32) * 2
UNLIKELY, LIKELY = math.log(0.1), math.log(0.9)


def search(
    evaluate: Callable[[Floats], LossTerms],
    norm: float,
    width: int,
    config: ZerothOrderConfig,
    refresh: Callable[[Floats], None] = lambda delta: None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> SearchResult:
    """Search on a loss that needs no model."""
    problem = SimpleNamespace(refresh=refresh)
    task = SimpleNamespace(
        evaluate=evaluate, value_norm=norm, value=np.zeros(width, np.float32), problem=problem, report=report
    )
    return zeroth_order(task, config)


def losses_of(found: SearchResult) -> tuple[float, ...]:
    return tuple(look.loss for look in found.looks)


def terms_of(losses: Floats, log_prob: float = UNLIKELY, greedy: tuple[bool, ...] = (False, False)) -> LossTerms:
    """Return terms of two rewriting rows with a target of one token."""
    n = len(losses)
    log_probs = np.full((n, 2, 1), log_prob, np.float32)
    leads = np.tile(np.where(greedy, 0.0, -1.0).astype(np.float32), (n, 1))
    return LossTerms(np.asarray(losses, np.float32), log_probs, leads, np.zeros(n, np.bool_))


class Recorded:
    """A loss that remembers the deltas it was asked for."""

    def __init__(self, loss: Callable[[Floats], Floats]) -> None:
        self._loss = loss
        self.calls: list[Floats] = []

    def __call__(self, deltas: Floats) -> LossTerms:
        self.calls.append(deltas.copy())
        return terms_of(self._loss(deltas))

    @property
    def looks(self) -> list[Floats]:
        return [deltas[0] for deltas in self.calls if len(deltas) == 1]

    @property
    def pairs(self) -> list[Floats]:
        return [deltas for deltas in self.calls if len(deltas) > 1]


def quadratic(deltas: Floats) -> Floats:
    return np.asarray(((deltas - GOAL) ** 2).sum(axis=-1))


def constant(deltas: Floats) -> Floats:
    return np.ones(len(deltas), np.float32)


def linear(deltas: Floats) -> Floats:
    return np.asarray(deltas @ GOAL)


@pytest.mark.parametrize("directions", [1, 4, WIDTH, 2 * WIDTH])
def test_search_lowers_the_loss_when_it_is_a_quadratic(directions: int) -> None:
    evaluate = Recorded(quadratic)
    found = search(evaluate, NORM, WIDTH, ZerothOrderConfig(steps=100, directions=directions, learning_rate=0.3))
    start, end = quadratic(np.zeros((1, WIDTH), np.float32))[0], quadratic(found.delta[None])[0]
    # A single direction of twelve sees a twelfth of the gradient in a step, and still gets most of the way.
    assert end < start * (0.3 if directions == 1 else 0.02)
    assert found.delta.dtype == np.float32
    assert found.delta.shape == (WIDTH,)
    assert not found.stopped_early
    assert losses_of(found)[0] == pytest.approx(start)
    assert min(losses_of(found)) == pytest.approx(end)


def test_delta_is_the_same_bit_for_bit_when_the_seed_is_the_same() -> None:
    config = ZerothOrderConfig(steps=15, directions=3, seed=11)
    one, two = (search(Recorded(quadratic), NORM, WIDTH, config) for _ in range(2))
    assert one.delta.tobytes() == two.delta.tobytes()
    assert losses_of(one) == losses_of(two)
    other = search(Recorded(quadratic), NORM, WIDTH, replace(config, seed=12))
    assert not np.array_equal(other.delta, one.delta)


@pytest.mark.parametrize("clamp", [0.05, 0.5])
def test_delta_stays_within_the_clamp_when_the_loss_falls_for_ever(clamp: float) -> None:
    evaluate = Recorded(linear)
    found = search(evaluate, NORM, WIDTH, ZerothOrderConfig(steps=30, clamp=clamp, check_every=1))
    lengths = [float(np.linalg.norm(delta)) for delta in (*evaluate.looks, found.delta)]
    assert max(lengths) == pytest.approx(clamp * NORM, rel=1e-6)  # reached, and exceeded by roundings alone


@pytest.mark.parametrize(("mu", "value_norm"), [(0.1, 5.0), (0.02, 300.0)])
def test_perturbations_are_mu_of_the_values_norm_to_both_sides_when_a_step_is_taken(
    mu: float, value_norm: float
) -> None:
    evaluate = Recorded(quadratic)
    search(evaluate, value_norm, WIDTH, ZerothOrderConfig(steps=1, directions=3, mu=mu))
    (pairs,) = evaluate.pairs  # around zero, where the search starts
    np.testing.assert_allclose(np.linalg.norm(pairs, axis=1), mu * value_norm, rtol=1e-6)
    assert np.array_equal(pairs[:3], -pairs[3:])


@pytest.mark.parametrize("value_norm", [0.01, 1.0, 300.0])
def test_search_scales_with_the_value_when_the_loss_does(value_norm: float) -> None:
    """All lengths are relative to the value's norm: the same loss in other units gives the same search."""
    config = ZerothOrderConfig(steps=20, directions=4)
    unit = search(Recorded(quadratic), 1.0, WIDTH, config)
    scaled = search(Recorded(lambda deltas: quadratic(deltas / value_norm)), value_norm, WIDTH, config)
    # 20 steps of float32, each of which may round otherwise.
    np.testing.assert_allclose(scaled.delta / value_norm, unit.delta, rtol=1e-3, atol=1e-3)


class Passing:
    """A loss whose stopping rule is fulfilled from a number of steps on, where it is worse than before."""

    def __init__(self, after: int, log_prob: float = LIKELY, greedy: tuple[bool, ...] = (True, True)) -> None:
        self._after, self._log_prob, self._greedy = after, log_prob, greedy
        self.steps = 0
        self.forwards = 0

    def __call__(self, deltas: Floats) -> LossTerms:
        self.steps += len(deltas) > 1
        self.forwards += len(deltas)
        if self.steps < self._after:
            return terms_of(linear(deltas))
        return terms_of(linear(deltas) + 1000, self._log_prob, self._greedy)


@pytest.mark.parametrize(
    ("after", "check_every", "steps"), [(0, 4, 0), (1, 4, 4), (4, 4, 4), (5, 4, 8), (7, 1, 7), (18, 8, 20), (20, 7, 20)]
)
def test_search_stops_at_the_first_look_when_the_target_is_reached(after: int, check_every: int, steps: int) -> None:
    evaluate = Passing(after)
    config = ZerothOrderConfig(steps=20, directions=2, check_every=check_every)
    found = search(evaluate, NORM, WIDTH, config)
    looks = -(-steps // check_every) + 1
    assert (found.steps, found.stopped_early, len(losses_of(found))) == (steps, True, looks)
    assert evaluate.forwards == looks + 2 * 2 * steps
    # What is returned is the delta that passed, not one of a lower loss before it. float32 losses of size 1000.
    assert losses_of(found)[-1] == pytest.approx(1000 + float(found.delta @ GOAL), abs=1e-3)


@pytest.mark.parametrize(
    ("log_prob", "greedy"),
    [(math.log(0.79), (True, True)), (LIKELY, (True, False)), (LIKELY, (False, False))],
    ids=["too-improbable", "one-row-not-greedy", "no-row-greedy"],
)
def test_search_goes_on_when_half_of_the_stopping_rule_holds(log_prob: float, greedy: tuple[bool, ...]) -> None:
    found = search(Passing(0, log_prob, greedy), NORM, WIDTH, ZerothOrderConfig(steps=6, check_every=2))
    assert (found.steps, found.stopped_early) == (6, False)


@pytest.mark.parametrize(
    ("steps", "directions", "check_every", "looks"),
    [(1, 1, 1, 2), (10, 3, 4, 4), (8, 2, 4, 3), (5, 20, 9, 2), (3, 1, 1, 4)],
)
def test_forwards_are_the_looks_and_two_for_each_direction_when_no_look_stops(
    steps: int, directions: int, check_every: int, looks: int
) -> None:
    evaluate = Recorded(quadratic)
    config = ZerothOrderConfig(steps=steps, directions=directions, check_every=check_every)
    found = search(evaluate, NORM, WIDTH, config)
    assert sum(len(deltas) for deltas in evaluate.calls) == looks + 2 * directions * steps
    assert len(losses_of(found)) == looks
    assert found.steps == steps
    at = [*range(0, steps, check_every), steps]
    assert [look.forwards for look in found.looks] == [i + 1 + 2 * directions * step for i, step in enumerate(at)]


def test_best_look_is_returned_when_the_loss_rises_again() -> None:
    wanted: list[Floats] = []
    losses = iter([5.0, 3.0, 1.0, 2.0, 4.0])

    def evaluate(deltas: Floats) -> LossTerms:
        if len(deltas) > 1:
            return terms_of(linear(deltas))
        loss = next(losses)
        if loss == 1.0:
            wanted.append(deltas[0].copy())
        return terms_of(np.array([loss]))

    found = search(evaluate, NORM, WIDTH, ZerothOrderConfig(steps=4, check_every=1))
    assert losses_of(found) == (5.0, 3.0, 1.0, 2.0, 4.0)
    assert np.array_equal(found.delta, wanted[0])
    assert found.delta.any()


def test_delta_is_zero_when_no_look_is_better_than_the_start() -> None:
    losses = iter([1.0, 2.0, 2.0])

    def evaluate(deltas: Floats) -> LossTerms:
        return terms_of(linear(deltas) if len(deltas) > 1 else np.array([next(losses)]))

    found = search(evaluate, NORM, WIDTH, ZerothOrderConfig(steps=2, check_every=1))
    assert not found.delta.any()


def test_report_tells_every_step_what_the_last_look_saw_when_the_search_runs() -> None:
    seen: list[Progress] = []
    config = ZerothOrderConfig(steps=5, check_every=2)
    found = search(Recorded(quadratic), NORM, WIDTH, config, report=seen.append)
    assert [(p.step, p.steps) for p in seen] == [(step, 5) for step in range(6)]
    assert len(set(losses_of(found))) == 4
    assert [p.loss for p in seen] == [losses_of(found)[look] for look in (0, 0, 1, 1, 2, 3)]
    assert [p.target_probability for p in seen] == pytest.approx([0.1] * 6)


@pytest.mark.parametrize(("window", "steps", "refreshes"), [(3, 12, 3), (3, 3, 0), (1, 6, 3), (5, 12, 2)])
def test_cache_is_refreshed_when_the_loss_stalls_over_the_window(window: int, steps: int, refreshes: int) -> None:
    calls: list[Floats] = []
    evaluate = Recorded(constant)
    config = ZerothOrderConfig(steps=steps, directions=2, stale_window=window)
    search(evaluate, NORM, WIDTH, config, refresh=lambda delta: calls.append(delta.copy()))
    assert len(calls) == refreshes


@pytest.mark.parametrize(("drop", "refreshes"), [(0.25, 0), (0.75, 2)])
def test_cache_is_refreshed_when_the_loss_falls_slower_than_the_policys_drop(drop: float, refreshes: int) -> None:
    """The loss falls by 0.125 a step, 0.5 over the window of 4."""
    calls: list[Floats] = []
    steps = iter(range(100))

    def evaluate(deltas: Floats) -> LossTerms:
        return terms_of(np.full(len(deltas), 10 - 0.125 * (next(steps) if len(deltas) > 1 else 0), np.float32))

    config = ZerothOrderConfig(steps=10, stale_window=4, stale_drop=drop)
    search(evaluate, NORM, WIDTH, config, refresh=calls.append)
    assert len(calls) == refreshes


def test_cache_is_refreshed_at_the_current_delta_when_the_loss_stalls() -> None:
    events: list[tuple[str, Floats]] = []

    def evaluate(deltas: Floats) -> LossTerms:
        if len(deltas) > 1:
            events.append(("center", deltas.mean(axis=0)))
        # Flat on average, so that it stalls, yet with a gradient, so that delta moves.
        return terms_of(linear(deltas - deltas.mean(axis=0)))

    config = ZerothOrderConfig(steps=6, directions=2, stale_window=2)
    search(evaluate, NORM, WIDTH, config, refresh=lambda delta: events.append(("refresh", delta.copy())))
    refreshed = [i for i, (name, _) in enumerate(events) if name == "refresh"]
    assert len(refreshed) == 2
    # The mean of +-u around delta is delta up to roundings of numbers of size 5.
    np.testing.assert_allclose(events[refreshed[0]][1], events[refreshed[0] + 1][1], atol=1e-5)
    assert np.linalg.norm(events[refreshed[0]][1]) > 1


def smooth(deltas: torch.Tensor) -> torch.Tensor:
    """Return a loss with curvature and a third derivative, like a negative log-likelihood."""
    mix = torch.from_numpy(np.random.default_rng(3).standard_normal((WIDTH, 20))).to(deltas.dtype)
    return torch.logsumexp(deltas @ mix, dim=-1) - (deltas @ mix)[..., 0]


@pytest.mark.parametrize("directions", [1, 3, WIDTH, WIDTH + 5])
def test_first_step_follows_autograds_gradient_when_projected_on_the_directions(directions: int) -> None:
    evaluate = Recorded(lambda deltas: smooth(torch.from_numpy(deltas).double()).numpy())
    config = ZerothOrderConfig(steps=1, directions=directions, mu=0.01, learning_rate=0.3, check_every=1)
    search(evaluate, 1.0, WIDTH, config)
    start = torch.zeros(WIDTH, dtype=torch.float64, requires_grad=True)
    smooth(start).backward()
    assert start.grad is not None
    (pairs,) = evaluate.pairs
    units = (pairs[:directions] - pairs[directions:]).astype(np.float64) / 0.02
    np.testing.assert_allclose(np.linalg.norm(units, axis=1), 1, atol=1e-5)
    projected = (start.grad.numpy() @ units.T) @ units
    first, moved = evaluate.looks
    assert not first.any()
    # A central difference is off by mu^2 / 6 of the third derivative, 1e-4 here, and by float32 losses over 2 mu, 1e-5,
    # both relative to a gradient whose projection is no shorter than 0.3; Adam's first step has the rate as its length.
    assert np.linalg.norm(projected) > 0.3
    np.testing.assert_allclose(moved, -0.3 * projected / np.linalg.norm(projected), atol=1e-3)


def test_step_lengths_decay_by_a_half_cosine_when_the_gradient_is_steady() -> None:
    evaluate = Recorded(linear)
    config = ZerothOrderConfig(steps=10, directions=WIDTH, learning_rate=0.2, final_rate=0.1, check_every=1, clamp=100)
    search(evaluate, NORM, WIDTH, config)
    steps = np.diff(np.array(evaluate.looks), axis=0)
    wanted = [0.2 * NORM * (0.1 + 0.9 * (1 + math.cos(math.pi * t / 10)) / 2) for t in range(10)]
    # With all directions the estimate of a linear loss is exact up to float32 losses of size 30 over 2 mu = 1.
    np.testing.assert_allclose(np.linalg.norm(steps, axis=1), wanted, rtol=1e-3)
    np.testing.assert_allclose(steps @ GOAL / np.linalg.norm(GOAL), -np.array(wanted), rtol=1e-3)


@settings(deadline=None)
@given(n=st.integers(1, 40), width=st.integers(1, 16), seed=st.integers(0, 1000))
def test_directions_are_orthonormal_in_blocks_when_there_are_any_number(n: int, width: int, seed: int) -> None:
    rows = random_directions(np.random.default_rng(seed), n, width)
    assert rows.shape == (n, width)
    assert rows.dtype == np.float32
    for start in range(0, n, width):
        block = rows[start : start + width]
        # Rounding an orthonormal float64 basis to float32.
        np.testing.assert_allclose(block @ block.T, np.eye(len(block)), atol=1e-6)


def test_directions_of_a_second_block_are_new_when_there_are_more_than_components() -> None:
    rows = random_directions(np.random.default_rng(0), 8, 4)
    assert np.abs(rows[:4] - rows[4:]).max() > 0.1


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"steps": -1},
        {"directions": 0},
        {"check_every": 0},
        {"mu": 0.0},
        {"mu": -0.1},
        {"learning_rate": 0.0},
        {"clamp": 0.0},
        {"stop_probability": 0.0},
        {"stop_probability": 1.0},
        {"stop_probability": math.nan},
        {"mu": math.nan},
        {"mu": math.inf},
        {"learning_rate": math.nan},
        {"learning_rate": math.inf},
        {"clamp": math.nan},
        {"seed": -1},
        {"momentum": 1.0},
        {"second_moment": 1.0},
    ],
    ids=lambda changes: "-".join(f"{name}={value}" for name, value in changes.items()),
)
def test_config_is_refused_when_it_cannot_be_searched_with(changes: dict[str, float]) -> None:
    with pytest.raises(RequestError, match=": give "):
        ZerothOrderConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{"steps": 1, "directions": 1, "check_every": 1}, {"clamp": 1e-9}, {"seed": 0}])
def test_config_is_accepted_when_values_are_at_the_edge(changes: dict[str, float]) -> None:
    config = ZerothOrderConfig(**changes)  # type: ignore[arg-type]
    assert math.isfinite(losses_of(search(Recorded(quadratic), NORM, WIDTH, config))[-1])
