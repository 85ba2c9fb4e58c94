"""The least direction that is 1 at its key and bounded at others, against quadratic programming in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mobiedit.runtime.separation import INFLATION, separated

Doubles = NDArray[np.float64]


def cosines(seed: int, count: int, common: float) -> Doubles:
    """Return the Gram matrix [n, n] of unit keys with something in common."""
    rng = np.random.default_rng(seed)
    keys = rng.standard_normal((count, 16)) + common * 4 * rng.standard_normal(16)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    return np.asarray(keys @ keys.T)


SLACK = 0.02 + 1e-6
problems = given(
    gram=st.builds(cosines, st.integers(0, 2**32 - 1), st.integers(1, 6), st.floats(0, 2)),
    most=st.lists(st.floats(0, 1.2), min_size=5, max_size=5),
)


@settings(deadline=None)
@problems
def test_direction_is_1_at_its_key_and_of_bounded_length_when_the_others_are_any(
    gram: Doubles, most: list[float]
) -> None:
    weights = separated(gram, 0, np.array([1, *most[: len(gram) - 1]]))
    assert gram[0] @ weights == pytest.approx(1)
    assert weights @ gram @ weights <= INFLATION + 1e-6


@settings(deadline=None)
@problems
def test_others_are_within_their_bounds_unless_that_costs_too_much(gram: Doubles, most: list[float]) -> None:
    bounds = np.array([1.0, *most[: len(gram) - 1]])
    weights = separated(gram, 0, bounds)
    for place in np.flatnonzero(gram @ weights > bounds + SLACK):
        held = [*np.flatnonzero(weights), place]
        needed = np.linalg.solve(gram[np.ix_(held, held)], bounds[held])
        assert not 0 < needed @ bounds[held] <= INFLATION * (1 - 1e-6)


@pytest.mark.parametrize(("cosine", "most"), [(0.5, 0.3), (0.8, 0.3), (0.8, 0.0), (-0.8, 0.3), (0.31, 0.3)])
def test_one_other_is_held_at_its_bound_when_it_is_above(cosine: float, most: float) -> None:
    """The least x^T G x with x.G_0 = 1 and x.G_1 <= most has the bound met where it binds."""
    gram = np.array([[1, cosine], [cosine, 1]])
    weights = separated(gram, 0, np.array([1, most]))
    if cosine <= most + SLACK:
        assert weights.tolist() == [1, 0]
    else:
        np.testing.assert_allclose(gram @ weights, [1, most], atol=1e-12)
        assert weights @ gram @ weights == pytest.approx((1 - 2 * most * cosine + most**2) / (1 - cosine**2))


@pytest.mark.parametrize("cosine", [1.0, 0.99])
def test_key_is_left_as_it_is_when_another_is_too_near(cosine: float) -> None:
    gram = np.array([[1, cosine, 0.5], [cosine, 1, 0.5], [0.5, 0.5, 1]])
    weights = separated(gram, 0, np.full(3, 0.3))
    assert weights[1] == 0
    np.testing.assert_allclose((gram @ weights)[[0, 2]], [1, 0.3])


def test_place_of_the_key_does_not_matter() -> None:
    gram = cosines(0, 5, 0.5)
    order = np.array([3, 1, 0, 4, 2])
    weights = separated(gram, 2, np.full(5, 0.2))
    np.testing.assert_allclose(separated(gram[np.ix_(order, order)], 4, np.full(5, 0.2)), weights[order])


def test_keys_alike_are_held_by_a_few_of_them() -> None:
    """The rest then is within the slack: a hundred facts of one kind do not take a hundred equations each."""
    gram = np.full((200, 200), 0.5) + 0.5 * np.eye(200)
    weights = separated(gram, 0, np.full(200, 0.3))
    assert np.count_nonzero(weights) < 30
    assert (gram @ weights)[1:].max() < 0.3 + SLACK
