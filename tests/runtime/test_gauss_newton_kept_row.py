"""The kept row in the Gauss-Newton search: each read-out is measured, corrected and modelled by itself."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from mobiedit.runtime.gauss_newton import Floats, _Point, _Search
from mobiedit.runtime.lack import Lack
from mobiedit.runtime.lens import Lens
from mobiedit.runtime.search import SearchTask
from tests.runtime.gauss_newton_case import SMALL, TOLERANCE, Case, away, central_differences

CONFIG = replace(SMALL, mu=0.01, top_tokens=10_000, groups=1)
"""Short differences, all measured, no token dropped: curvature and rounding alone are between what is compared."""


@dataclass(frozen=True)
class Opened:
    """A search, and a point of it where the kept row has moved."""

    task: SearchTask
    search: _Search
    point: _Point

    def lack(self, point: _Point) -> Lack:
        return self.search._lack(self.search._top(point.readouts))

    def measured(self, directions: Floats) -> Floats:
        """Return what the Jacobian says of the kept row along directions [n, D] of its basis, [n, K, D]."""
        jacobian = self.search._jacobian
        return np.stack([jacobian.kept @ (jacobian.basis @ direction) for direction in directions])

    def differences(self, delta: Floats, directions: Floats) -> Floats:
        """Return central differences [n, K, D] of the kept row at ``delta`` along unit directions [n, D]."""
        return central_differences(self.task, delta, directions)[1]


@pytest.fixture
def opened(case: Case, lens: Lens) -> Opened:
    return Opened(case.task, *away(case, CONFIG, lens))


def apart(found: Floats, wanted: Floats) -> Floats:
    """Return how far derivatives [n, K, D] are from what is wanted at each read-out, relative to it, [K]."""
    return np.asarray(np.linalg.norm(found - wanted, axis=(0, 2)) / np.linalg.norm(wanted, axis=(0, 2)))


def test_kept_columns_are_central_differences_when_measured(opened: Opened) -> None:
    opened.search._measure(opened.point, opened.lack(opened.point))
    basis = opened.search._jacobian.basis
    wanted = opened.differences(opened.point.delta, basis)
    assert len(basis) == CONFIG.directions
    assert apart(opened.measured(basis), wanted).max() < TOLERANCE
    assert apart(wanted[:, ::-1], wanted).max() > 0.5


def test_kept_column_along_the_gradient_is_renewed_when_measured_at_another_point(opened: Opened) -> None:
    opened.search._measure(opened.point, opened.lack(opened.point))
    (other,) = opened.search._evaluate(-opened.point.delta[None])
    lack = opened.lack(other)
    gradient = opened.search._jacobian.pulled_back(lack.by_row).sum(axis=0, keepdims=True)
    gradient /= np.linalg.norm(gradient)
    wanted = opened.differences(other.delta, gradient)
    assert apart(opened.measured(gradient), wanted).min() > 5 * TOLERANCE
    opened.search._measure(other, lack)
    assert apart(opened.measured(gradient), wanted).max() < TOLERANCE


def test_kept_columns_give_the_steps_change_when_an_epoch_has_taken_it(opened: Opened) -> None:
    point = opened.point
    found = opened.search._epoch(point)
    assert found is not None
    change = (found.kept - point.kept)[None]
    step = (found.delta - point.delta)[None]
    # Broyden's correction is exact but for float32 sums.
    assert apart(opened.measured(step), change).max() < 1e-5
    assert apart(change[:, ::-1], change).max() > 0.5


def test_model_has_the_losss_divergence_when_no_step_is_taken(opened: Opened) -> None:
    task, search, point = opened.task, opened.search, opened.point
    value, _ = search._model(point, search._top(point.readouts))._evaluate(np.zeros(0, np.float32), 0.0)
    before = task.loss.kept_log_probs
    entropy = -float((np.exp(before) * before).sum())  # the model leaves it out: it does not move
    losses = [
        float(task.loss(point.readouts[None], kept[None], point.delta[None]).total[0])
        for kept in (point.kept, point.kept[::-1])
    ]
    penalty = CONFIG.norm_penalty * float(point.delta @ point.delta) / task.value_norm**2
    # float32 sums over 600 tokens of terms of size 1 to 10.
    assert value - task.loss.config.kl_factor * entropy == pytest.approx(losses[0] + penalty, abs=1e-4)
    assert abs(losses[1] - losses[0]) > 0.1
