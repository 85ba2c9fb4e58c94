"""Which groups get 8 bits: the order, the budget, and the divergence they are measured by."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobiedit.calibration.sensitivity import Divergence, assign_eight_bits, divergence
from mobiedit.runtime.readout_loss import log_softmax

COSTS = {"a": 0.04, "b": 0.01, "c": 0.02, "d": 0.5}


def total(names: Collection[str]) -> Divergence:
    return Divergence(sum(COSTS[name] for name in names), 0.0)


@pytest.mark.parametrize(
    ("budget", "chosen"),
    [(0.001, ()), (0.01, ("b",)), (0.031, ("b", "c")), (0.1, ("b", "c", "a")), (1.0, ("b", "c", "a", "d"))],
)
def test_least_sensitive_groups_are_chosen_first_when_the_budget_is_small(
    budget: float, chosen: tuple[str, ...]
) -> None:
    steps: list[int] = []
    found = assign_eight_bits(list(COSTS), total, total, budget, steps.append)
    assert found.chosen == chosen
    assert found.joint.cost <= budget
    assert found.alone == {name: Divergence(cost, 0.0) for name, cost in COSTS.items()}
    assert sum(steps) <= len(COSTS) + len(COSTS).bit_length()


@given(
    costs=st.lists(st.floats(0, 1), min_size=1, max_size=20),
    factor=st.floats(1, 3),
    budget=st.floats(0.01, 5),
)
def test_joint_set_is_within_the_budget_when_costs_do_not_add_up(
    costs: list[float], factor: float, budget: float
) -> None:
    def joint(names: Collection[str]) -> Divergence:
        return Divergence(0.0, factor * sum(costs[int(name)] for name in names))

    names = [str(index) for index in range(len(costs))]
    found = assign_eight_bits(names, lambda each: Divergence(costs[int(next(iter(each)))], 0.0), joint, budget)
    assert found.joint.cost <= budget
    assert found.joint == joint(found.chosen)
    if len(found.chosen) < len(names):
        order = sorted(names, key=lambda name: (costs[int(name)], name))
        assert joint(order[: len(found.chosen) + 1]).cost > budget


def test_cost_is_the_larger_one_when_the_nll_falls_by_chance() -> None:
    assert Divergence(0.2, -0.1).cost == 0.2
    assert Divergence(0.2, 0.3).cost == 0.3


def test_divergence_is_that_of_the_definition_when_computed_by_hand() -> None:
    wanted = log_softmax(np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], np.float32)))
    found = log_softmax(np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]], np.float32)))
    result = divergence([wanted], [found], [(0, 1)])
    assert result.kl == pytest.approx((0.5 * np.log(2) - 0.25 * np.log(2)) / 2, abs=1e-6)  # second token: none
    assert result.nll_change == pytest.approx(np.log(0.25) - np.log(0.5), abs=1e-6)  # token 1 behind token 0
    assert divergence([wanted], [wanted], [(0, 1)]) == Divergence(0.0, 0.0)
