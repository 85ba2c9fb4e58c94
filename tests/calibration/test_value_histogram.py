"""Histograms of values that come in pieces, against numpy on all of them at once."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from mobiedit.calibration.value_histogram import BINS, Extremes, ValueHistogram

Floats = NDArray[np.float32]

MAGNITUDE = 2.0**40
VALUES = arrays(
    np.float32, st.integers(1, 60), elements=st.floats(-MAGNITUDE, MAGNITUDE, width=32, allow_subnormal=False)
)


def histogram(*pieces: Floats) -> ValueHistogram:
    result = ValueHistogram()
    for piece in pieces:
        result.add(piece)
    return result


def pieces_of(values: Floats, cuts: list[int]) -> list[Floats]:
    return np.split(values, sorted(cut % (len(values) + 1) for cut in cuts))


@settings(deadline=None)
@given(values=VALUES, cuts=st.lists(st.integers(0, 60), max_size=5))
def test_extremes_are_numpys_with_zero_when_values_come_in_pieces(values: Floats, cuts: list[int]) -> None:
    for result in (Extremes(), ValueHistogram()):
        for piece in pieces_of(values, cuts):
            result.add(piece)
        assert (result.low, result.high) == (min(values.min(), 0), max(values.max(), 0))
        assert result.values == len(values)


@settings(deadline=None)
@given(values=VALUES)
def test_counts_are_numpys_when_values_come_at_once(values: Floats) -> None:
    result = histogram(values)
    expected, _ = np.histogram(values.astype(np.float64), result.edges)  # its last bin alone has a closed end
    np.testing.assert_array_equal(result.counts, expected)
    assert result.counts.sum() == len(values)


@settings(deadline=None)
@given(values=VALUES, cuts=st.lists(st.integers(0, 60), max_size=5), order=st.randoms(use_true_random=False))
def test_counts_are_exactly_the_same_when_pieces_come_in_another_order(
    values: Floats, cuts: list[int], order: Random
) -> None:
    pieces = pieces_of(values, cuts)
    order.shuffle(pieces)
    whole, parts = histogram(values), histogram(*pieces)
    assert whole.width == parts.width
    np.testing.assert_array_equal(whole.counts, parts.counts)


@pytest.mark.parametrize("factor", [1e-30, 1.0, 1e30])
def test_bins_are_fine_at_any_scale_when_values_are_far_from_one(factor: float) -> None:
    values = np.float32(factor) * np.linspace(-1, 1, 101, dtype=np.float32)
    result = histogram(values)
    assert result.edges[0] < -values.max() <= result.edges[0] / 2  # the least power of two that is enough
    assert result.width == result.edges[-1] / (BINS // 2)


def test_memory_is_the_same_when_many_values_are_seen() -> None:
    rng = np.random.default_rng(0)
    result = histogram(*(scale * rng.standard_normal(1000) for scale in (1e-3, 1.0, 1e6, 1e-6)))
    assert result.counts.shape == (BINS,)
    assert result.counts.sum() == 4000


def test_zeros_leave_the_width_to_others_when_they_come_first() -> None:
    zeros, small = np.zeros((3, 4), np.float32), np.full((2, 2), 1e-3, np.float32)
    assert histogram(zeros, small).width == histogram(small, zeros).width < 1e-5


@pytest.mark.parametrize("kind", [Extremes, ValueHistogram])
def test_nothing_changes_when_a_piece_is_empty(kind: type[Extremes]) -> None:
    result = kind()
    result.add(np.zeros((0, 3), np.float32))
    assert (result.low, result.high, result.values) == (0, 0, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [Extremes, ValueHistogram])
def test_value_is_refused_when_it_is_not_finite(kind: type[Extremes], value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        kind().add(np.array([1.0, value], np.float32))


@settings(deadline=None)
@given(values=VALUES, share=st.floats(0.01, 0.99))
def test_magnitude_is_within_a_bin_of_numpys_when_asked_for(values: Floats, share: float) -> None:
    result = histogram(values)
    magnitudes = np.abs(values.astype(np.float64))
    # Rounding of share times count may take the neighbour: the order statistics around it bound the result.
    least, most = (np.quantile(magnitudes, share + off, method="inverted_cdf") for off in (-1e-9, 1e-9))
    assert least <= result.magnitude_at(share) <= most + result.width


@settings(deadline=None)
@given(values=VALUES, ends=st.tuples(*(st.floats(0, 1) for _ in range(2))))
def test_values_outside_are_numpys_to_the_bins_of_the_ends_when_counted(
    values: Floats, ends: tuple[float, float]
) -> None:
    result = histogram(values)
    low, high = ends[0] * result.low, ends[1] * result.high
    exact = np.count_nonzero((values < low) | (values > high))
    bins = np.floor(np.array([low, high]) / result.width).astype(int) + BINS // 2
    assert abs(result.outside(low, high) - exact) <= result.counts[bins].sum() + 1e-6
    assert result.outside(result.low, result.high) == 0
