"""Compact key statistics against the dense algebra of what they stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file

from mobiedit.calibration.compact_statistics import affordable_rank, compact_bytes, compact_statistics
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.key_statistics import KeyStatistics

Doubles = NDArray[np.float64]
WIDTH = 96
ROUNDING = 5e-3
"""Of the norm: float16 directions have errors of 2^-11 an entry, a few of which add up."""


def covariance(rng: np.random.Generator, width: int = WIDTH, dead: int = 0) -> Doubles:
    """Return C of keys with a falling spectrum and neurons of unlike sizes, with its ridge; some are always 0."""
    keys = (rng.standard_normal((4 * width, width)) * np.arange(1, width + 1) ** -0.7) @ rng.standard_normal(
        (width, width)
    )
    keys *= np.exp(rng.standard_normal(width))
    keys[:, :dead] = 0
    c = keys.T @ keys / len(keys)
    return np.asarray(c + 1e-3 * np.trace(c) / width * np.eye(width))


def stored(inverse: Doubles, rank: int, folder: Path) -> KeyStatistics:
    """Return compact statistics as a bundle has them."""
    path = folder / "statistics.safetensors"
    save_file(
        {
            name: np.ascontiguousarray(t)
            for name, t in compact_statistics(inverse.astype(np.float32), rank).tensors.items()
        },
        path,
    )
    return KeyStatistics.find(path)


def dense(statistics: KeyStatistics) -> Doubles:
    return (statistics @ np.eye(len(statistics.scale), dtype=np.float32)).astype(np.float64)


def approximation(c: Doubles, rank: int) -> Doubles:
    """Return the inverse of S (rho (I - U^T U) + U^T Lambda U) S, made as the formula says."""
    deviations = 1 / np.sqrt(np.diag(np.linalg.inv(c)))
    values, vectors = np.linalg.eigh(c / np.outer(deviations, deviations))
    kept = values.copy()
    kept[: len(c) - rank] = values[: len(c) - rank].mean()
    return np.asarray(np.linalg.inv((vectors * kept) @ vectors.T * np.outer(deviations, deviations)))


def assert_close(found: Doubles, expected: Doubles, tolerance: float) -> None:
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("seed", range(3))
def test_form_is_the_inverse_when_rank_is_whole(seed: int, tmp_path: Path) -> None:
    c = covariance(np.random.default_rng(seed))
    assert_close(dense(stored(np.linalg.inv(c), WIDTH - 1, tmp_path)), np.linalg.inv(c), ROUNDING)


@pytest.mark.parametrize("rank", [WIDTH // 2, 3 * WIDTH // 4])
def test_form_is_that_of_the_formula_when_rank_is_lower(rank: int, tmp_path: Path) -> None:
    c = covariance(np.random.default_rng(5))
    expected = approximation(c, rank)
    assert np.linalg.norm(expected - np.linalg.inv(c)) > 10 * ROUNDING * np.linalg.norm(expected)  # another matrix
    assert_close(dense(stored(np.linalg.inv(c), rank, tmp_path)), expected, ROUNDING)


@pytest.mark.parametrize("rank", [1, 5, 30])
def test_form_is_near_that_of_the_formula_when_the_subspace_is_iterated(rank: int, tmp_path: Path) -> None:
    c = covariance(np.random.default_rng(6))
    found, expected = dense(stored(np.linalg.inv(c), rank, tmp_path)), approximation(c, rank)
    # The last directions have not converged. A direction of an update does not depend on the form's scale, which is
    # rho's: told by 32 probes of some 70 numbers, it is within a tenth; a real width has thousands.
    assert np.trace(found) == pytest.approx(np.trace(expected), rel=0.1)
    assert_close(found / np.trace(found), expected / np.trace(expected), 0.02)


@pytest.mark.parametrize("rank", [1, 10, 60, WIDTH - 1])
@pytest.mark.parametrize("spread", [1.0, 1e5])
def test_form_is_positive_definite_when_a_direction_is_far_stronger_than_others(
    spread: float, rank: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(7)
    strong = rng.standard_normal(WIDTH)
    inverse = np.linalg.inv(np.eye(WIDTH) + spread * np.outer(strong, strong))
    form = dense(stored(inverse, rank, tmp_path))
    assert np.linalg.eigvalsh((form + form.T) / 2).min() > 0
    assert strong @ form @ strong > 0


@pytest.mark.parametrize("rank", [20, WIDTH - 1])
def test_dead_neurons_have_the_ridge_alone_when_their_keys_are_zero(rank: int, tmp_path: Path) -> None:
    c = covariance(np.random.default_rng(8), dead=3)
    statistics = stored(np.linalg.inv(c), rank, tmp_path)
    key = np.zeros(WIDTH, np.float32)
    key[1] = 1
    solved = statistics @ key
    assert np.isfinite(solved).all()
    assert np.argmax(np.abs(solved)) == 1
    if rank == WIDTH - 1:
        assert solved[1] == pytest.approx(1 / c[1, 1], rel=ROUNDING)


def test_form_is_the_same_when_made_again(tmp_path: Path) -> None:
    inverse = np.linalg.inv(covariance(np.random.default_rng(9))).astype(np.float32)
    given = inverse.copy()
    one, other = (compact_statistics(inverse, 20) for _ in range(2))
    for name, tensor in one.tensors.items():
        np.testing.assert_array_equal(tensor, other.tensors[name])
    np.testing.assert_array_equal(inverse, given)  # it is the lens's as well


@settings(deadline=None, max_examples=40)
@given(width=st.integers(2, 300), limit=st.integers(1_500, 200_000))
def test_file_is_within_the_budget_when_width_is_any(
    width: int, limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if compact_bytes(width, 1) > limit:
        with pytest.raises(RequestError, match=r"--key-statistics-mb .* is too small"):
            affordable_rank(width, limit)
        return
    rank = affordable_rank(width, limit)
    assert 1 <= rank < width
    path = tmp_path_factory.mktemp("budget") / "s.safetensors"
    tensors = {
        "directions": np.zeros((rank, width), np.float16),
        "weights": np.zeros(rank, np.float32),
        "scale": np.zeros(width, np.float32),
    }
    save_file(tensors, path)
    assert compact_bytes(width, rank) - 1024 < path.stat().st_size <= min(limit, compact_bytes(width, rank))
    if rank < width - 1:
        assert compact_bytes(width, rank + 1) > limit  # no direction is given away


def test_rank_is_13_percent_when_32_megabytes_are_for_a_3b() -> None:
    assert affordable_rank(11_008, 32_000_000) == 1451
