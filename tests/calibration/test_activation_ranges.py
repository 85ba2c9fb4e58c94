"""Ranges of activations: each method against its definition on all values at once."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from mobiedit.calibration.activation_ranges import (
    ZERO_RANGE,
    RangeConfig,
    RangeMethod,
    RangeObserver,
    TensorRange,
    choose_range,
    summary,
)
from mobiedit.calibration.value_histogram import ValueHistogram
from mobiedit.runtime.errors import NumericsError

Floats = NDArray[np.float32]
Method = RangeMethod

VALUES = arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False))
CUTS = st.lists(st.integers(0, 60), max_size=5)
METHODS = st.sampled_from(RangeMethod)


def ranged(config: RangeConfig, *pieces: Floats) -> TensorRange:
    observer = RangeObserver(config)
    for piece in pieces:
        observer.observe("x", piece)
    return observer.ranges()["x"]


def bin_width(values: Floats) -> float:
    seen = ValueHistogram()
    seen.add(values)
    return seen.width


def heavy_tailed(seed: int, count: int = 20_000) -> Floats:
    """Values as activations are: most of them small, a few far out."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(count) * np.exp(rng.uniform(-2, 2)) + rng.uniform(-1, 1)
    values[: rng.integers(1, 30)] *= rng.uniform(5, 50)
    return values.astype(np.float32)


def quantisation_error(values: Floats, chosen: TensorRange, bits: int) -> float:
    """Mean squared error of rounding to the range's levels, its zero point being one of them."""
    step = (chosen.high - chosen.low) / (2**bits - 1)
    zero_point = round(-chosen.low / step)
    levels = np.clip(np.round(values.astype(np.float64) / step) + zero_point, 0, 2**bits - 1)
    return float(np.mean(((levels - zero_point) * step - values) ** 2))


# Every method


@settings(deadline=None)
@given(values=VALUES, method=METHODS)
def test_range_is_finite_and_holds_zero_when_values_are_any(values: Floats, method: Method) -> None:
    chosen = ranged(RangeConfig(method), values)
    assert -math.inf < chosen.low <= 0 <= chosen.high < math.inf
    assert chosen.low < chosen.high
    assert chosen.values == len(values)
    assert 0 <= chosen.clipped <= len(values)


@settings(deadline=None)
@given(values=VALUES, cuts=CUTS, method=METHODS, order=st.randoms(use_true_random=False))
def test_range_is_exactly_the_same_when_values_come_in_other_pieces(
    values: Floats, cuts: list[int], method: Method, order: Random
) -> None:
    pieces = np.split(values, sorted(cut % (len(values) + 1) for cut in cuts))
    order.shuffle(pieces)
    assert ranged(RangeConfig(method), *pieces) == ranged(RangeConfig(method), values)


@pytest.mark.parametrize("method", RangeMethod)
def test_range_is_tiny_when_all_values_are_zero(method: Method) -> None:
    assert ranged(RangeConfig(method), np.zeros((2, 3), np.float32)) == TensorRange(0.0, ZERO_RANGE, 6)


@pytest.mark.parametrize("method", RangeMethod)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_tensor_is_named_in_one_line_when_a_value_is_not_finite(method: Method, value: float) -> None:
    with pytest.raises(NumericsError, match=r"\Atensor 'x' has NaN or infinity [^\n]+--precision fp32\Z"):
        ranged(RangeConfig(method), np.array([0.0, value], np.float32))


def test_tensors_are_kept_apart_when_several_are_observed() -> None:
    observer = RangeObserver(RangeConfig())
    for name, value in (("b", 2.0), ("a", -1.0), ("b", 3.0)):
        observer.observe(name, np.array([value], np.float32))
    assert observer.ranges() == {"a": TensorRange(-1.0, 0.0, 1), "b": TensorRange(0.0, 3.0, 2)}
    assert list(observer.ranges()) == ["a", "b"]


@pytest.mark.parametrize("method", RangeMethod)
def test_range_is_that_of_min_max_when_the_tensor_is_not_to_be_clipped(method: Method) -> None:
    observer = RangeObserver(RangeConfig(method, bits=4), unclipped={"x"})
    observer.observe("x", heavy_tailed(0))
    assert observer.ranges()["x"] == ranged(RangeConfig(), heavy_tailed(0))


# MIN_MAX


@settings(deadline=None)
@given(values=VALUES, cuts=CUTS)
def test_min_max_is_numpys_when_values_come_in_pieces(values: Floats, cuts: list[int]) -> None:
    chosen = ranged(RangeConfig(), *np.split(values, sorted(cut % (len(values) + 1) for cut in cuts)))
    if values.any():
        assert (chosen.low, chosen.high) == (min(values.min(), 0), max(values.max(), 0))
    assert chosen.clipped == 0


def test_min_max_is_the_same_when_taken_of_a_histogram() -> None:
    values = heavy_tailed(0)
    seen = ValueHistogram()
    seen.add(values)
    assert choose_range(seen, RangeConfig()) == ranged(RangeConfig(), values)


# PERCENTILE


@settings(deadline=None)
@given(values=VALUES, percentile=st.floats(50, 99.999))
def test_percentile_is_within_a_bin_of_numpys_when_values_are_any(values: Floats, percentile: float) -> None:
    chosen = ranged(RangeConfig(Method.PERCENTILE, percentile=percentile), values)
    tail, width = (1 - percentile / 100) / 2, bin_width(values)
    # Rounding of share times count may take the neighbour: the order statistics around it bound the result.
    lows, highs = (
        [np.quantile(values.astype(np.float64), share + off, method="inverted_cdf") for off in (-1e-9, 1e-9)]
        for share in (tail, 1 - tail)
    )
    assert min(lows[0], 0) - width <= chosen.low <= min(lows[1], 0)
    if chosen.high != ZERO_RANGE:
        assert max(highs[0], 0) <= chosen.high <= max(highs[1], 0) + width


def test_percentile_leaves_out_its_share_when_values_are_many() -> None:
    chosen = ranged(RangeConfig(Method.PERCENTILE, percentile=99.0), heavy_tailed(1))
    assert 0.0 < chosen.clipped / chosen.values <= 0.01


# MSE


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), bits=st.sampled_from([4, 6, 8, 16]))
def test_error_is_at_most_that_of_min_max_when_the_least_is_chosen(seed: int, bits: int) -> None:
    values = heavy_tailed(seed)
    least = ranged(RangeConfig(Method.MSE, bits=bits), values)
    whole = ranged(RangeConfig(), values)
    # Values are not spread quite evenly in a bin, as the expectation has it.
    assert quantisation_error(values, least, bits) <= 1.02 * quantisation_error(values, whole, bits)
    assert whole.low <= least.low
    assert least.high <= whole.high


@settings(deadline=None)
@given(values=VALUES, bits=st.integers(2, 16))
def test_error_is_bounded_by_the_step_of_min_max_when_values_are_any(values: Floats, bits: int) -> None:
    chosen, whole = ranged(RangeConfig(Method.MSE, bits=bits), values), ranged(RangeConfig(), values)
    step = (whole.high - whole.low) / (2**bits - 1)
    # Whatever the bins hide: half a step for rounding, and clipping that is worth no more than another half.
    assert quantisation_error(values, chosen, bits) <= 2 * (step / 2) ** 2 * (1 + 1e-6)


def test_nothing_is_clipped_when_most_values_round_to_zero_all_the_same() -> None:
    # A step of 34 makes an error of step^2 / 12 = 98 only where values are spread over several steps.
    values = heavy_tailed(2097)
    chosen, whole = (ranged(RangeConfig(method, bits=4), values) for method in (Method.MSE, Method.MIN_MAX))
    assert quantisation_error(values, chosen, 4) <= quantisation_error(values, whole, 4) < 10


def test_outlier_is_clipped_when_bits_are_few() -> None:
    values = heavy_tailed(2)
    whole = ranged(RangeConfig(), values)
    config = RangeConfig(Method.MSE, bits=4)
    assert ranged(config, values).bound < 0.8 * whole.bound
    assert ranged(config, values).clipped > 0
    assert ranged(replace(config, bits=16), values).bound > 0.95 * whole.bound


def test_both_ends_shrink_alike_when_error_is_least() -> None:
    chosen, whole = (ranged(RangeConfig(method, bits=4), heavy_tailed(3)) for method in (Method.MSE, Method.MIN_MAX))
    assert chosen.low / whole.low == pytest.approx(chosen.high / whole.high, rel=1e-12)
    assert round(100 * chosen.low / whole.low, 9) in range(1, 101)


# CLIP


@settings(deadline=None)
@given(values=VALUES)
def test_clip_is_never_below_four_nor_wider_than_min_max_when_values_are_any(values: Floats) -> None:
    chosen, whole = ranged(RangeConfig(Method.CLIP), values), ranged(RangeConfig(), values)
    assert whole.low <= chosen.low <= max(whole.low, -4.0)
    assert min(whole.high, 4.0) <= chosen.high <= whole.high


@settings(deadline=None)
@given(values=VALUES)
def test_clip_is_the_99th_percentile_of_magnitudes_within_a_bin_when_it_is_above_four(values: Floats) -> None:
    threshold = max(np.quantile(np.abs(values.astype(np.float64)), 0.99, method="inverted_cdf"), 4.0)
    chosen, whole = ranged(RangeConfig(Method.CLIP), values), ranged(RangeConfig(), values)
    for found, end in ((-chosen.low, -whole.low), (chosen.high, whole.high)):
        assert min(end, threshold) <= found <= min(end, threshold + bin_width(values))


def test_one_outlier_in_a_thousand_is_clipped_at_four_when_the_others_are_small() -> None:
    values = np.linspace(-1, 2, 1000, dtype=np.float32)
    values[500] = 100
    assert ranged(RangeConfig(Method.CLIP), values) == TensorRange(-1.0, 4.0, 1000, pytest.approx(1.0, abs=0.5))


# The summary


def test_summary_has_tensors_bounds_and_share_when_ranges_are_given() -> None:
    ranges = {
        "a": TensorRange(-3.0, 1.0, 60, 1.0),
        "b": TensorRange(0.0, 7.0, 40, 2.0),
        "c": TensorRange(0.0, 1.0),
    }
    assert summary(ranges) == {"tensors": 3, "median_bound": 3.0, "largest_bound": 7.0, "clipped": 0.03}
