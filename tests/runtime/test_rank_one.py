"""The rank-one update against dense linear algebra in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mobiedit.runtime.errors import NumericsError
from mobiedit.runtime.rank_one import rank_one_direction

Doubles = NDArray[np.float64]

# C has a condition number below 100 here; float32 inverses of it are good to about 1e-5.
TOLERANCE = 1e-4
seeds = given(seed=st.integers(0, 2**32 - 1), width=st.integers(1, 24))


def covariance(rng: np.random.Generator, width: int) -> Doubles:
    """Return a random C = E[k k^T] + I, as of keys with very different directions."""
    keys = rng.standard_normal((2 * width, width))
    return keys.T @ keys / (2 * width) + 0.1 * np.eye(width)


def direction_of(key: Doubles, c: Doubles) -> Doubles:
    direction = rank_one_direction(key.astype(np.float32), np.linalg.inv(c).astype(np.float32))
    assert direction.dtype == np.float32
    assert direction.shape == key.shape
    return direction.astype(np.float64)


@settings(deadline=None)
@seeds
def test_direction_equals_the_dense_solution_when_statistics_are_any(seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    c, key = covariance(rng, width), rng.standard_normal(width)
    solved = np.linalg.solve(c, key)
    np.testing.assert_allclose(direction_of(key, c), solved / (key @ solved), rtol=TOLERANCE, atol=TOLERANCE)


@settings(deadline=None)
@seeds
def test_update_moves_the_key_by_delta_when_weight_is_any(seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    c, key = covariance(rng, width), rng.standard_normal(width)
    weight, delta = rng.standard_normal((5, width)), rng.standard_normal(5)
    updated = weight + np.outer(delta, direction_of(key, c))
    np.testing.assert_allclose(updated @ key, weight @ key + delta, atol=TOLERANCE)


@settings(deadline=None)
@seeds
def test_update_is_the_least_change_when_others_move_the_key_alike(seed: int, width: int) -> None:
    """trace(X C X^T) is the mean square of what a change X does to the calibration text's values."""
    rng = np.random.default_rng(seed)
    c, key, delta = covariance(rng, width), rng.standard_normal(width), rng.standard_normal(5)
    change = np.outer(delta, direction_of(key, c))
    # Any other change with the same effect on the key differs by a matrix that the key does not see.
    unseen = rng.standard_normal((5, width)) * rng.choice([1e-2, 1.0, 100.0])
    unseen -= np.outer(unseen @ key, key) / (key @ key)
    other = change + unseen
    np.testing.assert_allclose(other @ key, change @ key, atol=1e-9)
    # With float64's own direction the cross term is zero; float32's leaves TOLERANCE of the product of the sizes.
    cost, extra = np.trace(change @ c @ change.T), np.trace(unseen @ c @ unseen.T)
    # Rounding of the sums themselves grows with them.
    slack = 2 * TOLERANCE * np.sqrt(cost * extra) + 1e-12 * (1 + cost + extra)
    assert np.trace(other @ c @ other.T) >= cost + extra - slack


def test_direction_is_the_key_over_its_square_when_statistics_are_isotropic() -> None:
    key = np.array([3.0, 4.0], np.float32)
    assert rank_one_direction(key, np.eye(2, dtype=np.float32)).tolist() == pytest.approx([3 / 25, 4 / 25])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize(
    "key",
    [[0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0], [3e38, 3e38]],
    ids=["zero", "nan", "infinite", "overflows"],
)
def test_direction_is_refused_when_the_key_has_no_length(key: list[float]) -> None:
    with pytest.raises(NumericsError, match="the subject's key has no length under the key statistics"):
        rank_one_direction(np.array(key, np.float32), np.eye(2, dtype=np.float32))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("inverse", [np.zeros((2, 2)), -np.eye(2), np.full((2, 2), np.nan)])
def test_direction_is_refused_when_statistics_are_no_inverse_covariance(inverse: Doubles) -> None:
    with pytest.raises(NumericsError, match="export the bundle again"):
        rank_one_direction(np.ones(2, np.float32), inverse.astype(np.float32))
