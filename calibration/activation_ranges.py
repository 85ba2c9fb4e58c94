"""The range that a tensor's values are quantised in, chosen from what calibration text shows of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobiedit.runtime.errors import NumericsError

from .value_histogram import Extremes, ValueHistogram

ZERO_RANGE = 1e-4
"""Upper end of an all-zero tensor's range: the least one that ONNX Runtime's QNN configuration writes."""


class RangeMethod(StrEnum):
    """How the range of a tensor x follows from its values; it always holds 0.

    Percentiles are those of a histogram, rounded outwards to the edge of a bin.

    MIN_MAX
        [min x, max x]: nothing is clipped.
    PERCENTILE
        The range that leaves an equal share of the values out at either end (Wu et al. 2020, arXiv 2004.09602, for
        |x|; here at both ends, since the ranges are asymmetric).
    MSE
        [f min x, f max x] with the f of a grid whose mean squared error of quantisation is least: the distance to the
        nearest level, values being spread evenly in a bin, or to the range for those outside.
    CLIP
        MobiEdit's (arXiv 2506.13772): asymmetric W8A16 that clips the top 1 % of outliers, with a maximum threshold
        per layer above 4. Taken as: a threshold t per tensor, the 99th percentile of |x|, raised to 4 where it is
        less; the range is [max(min x, -t), min(max x, t)], so it is never wider than MIN_MAX's.
    """

    MIN_MAX = "minmax"
    PERCENTILE = "percentile"
    MSE = "mse"
    CLIP = "clip"


@dataclass(frozen=True)
class RangeConfig:
    """How ranges are chosen.

    Attributes
    ----------
    percentile
        PERCENTILE: per cent of the values that stay inside.
    clip_percentile
        CLIP: per cent of the magnitudes below the threshold.
    clip_floor
        CLIP: the least threshold, in the tensor's unit.
    shrinks
        MSE: the fractions tried are 1 / shrinks, 2 / shrinks, ..., 1.
    bits
        MSE: of a quantised value.
    """

    method: RangeMethod = RangeMethod.MIN_MAX
    percentile: float = 99.99
    clip_percentile: float = 99.0
    clip_floor: float = 4.0
    shrinks: int = 100
    bits: int = 16


@dataclass(frozen=True)
class TensorRange:
    """A tensor's range.

    Attributes
    ----------
    low, high
        Its ends, finite, with low <= 0 <= high and low < high.
    values
        Values that it was chosen from.
    clipped
        How many of them are outside, to a bin of the histogram.
    """

    low: float
    high: float
    values: int = 0
    clipped: float = 0.0

    @property
    def bound(self) -> float:
        """The largest magnitude that the range holds."""
        return max(-self.low, self.high)


class RangeObserver:
    """Sees the tensors of a graph piece by piece and chooses a range for each.

    Memory: that of a `ValueHistogram` a tensor, or of three numbers for MIN_MAX, however many pieces there are.

    Parameters
    ----------
    unclipped
        Tensors whose range is MIN_MAX's whatever the method.
    """

    def __init__(self, config: RangeConfig, unclipped: Collection[str] = ()) -> None:
        self._config = config
        self._unclipped = unclipped
        self._seen: dict[str, Extremes] = {}

    def observe(self, name: str, piece: NDArray[Any]) -> None:
        """Take a piece, of any shape, of the tensor called ``name``.

        Raises
        ------
        NumericsError
            When a value is not finite.
        """
        if name not in self._seen:
            whole = self._config.method is RangeMethod.MIN_MAX or name in self._unclipped
            self._seen[name] = Extremes() if whole else ValueHistogram()
        try:
            self._seen[name].add(piece)
        except ValueError as error:
            raise NumericsError(
                f"tensor {name!r} has NaN or infinity on calibration text: give another --calibration-text, "
                "or export with --precision fp32"
            ) from error

    def ranges(self) -> dict[str, TensorRange]:
        """Return the range of each tensor by name."""
        return {name: choose_range(seen, self._config) for name, seen in sorted(self._seen.items())}


def choose_range(seen: Extremes, config: RangeConfig) -> TensorRange:
    """Choose the range of one tensor: MIN_MAX's where only the extremes are known."""
    if seen.low == seen.high:  # nothing but zeros
        return TensorRange(0.0, ZERO_RANGE, seen.values)
    if not isinstance(seen, ValueHistogram):
        return TensorRange(seen.low, seen.high, seen.values)
    low, high = {
        RangeMethod.MIN_MAX: _min_max,
        RangeMethod.PERCENTILE: _percentile,
        RangeMethod.MSE: _least_error,
        RangeMethod.CLIP: _clip,
    }[config.method](seen, config)
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        high = ZERO_RANGE
    return TensorRange(low, high, seen.values, seen.outside(low, high))


def summary(ranges: Mapping[str, TensorRange]) -> dict[str, float]:
    """Return a graph's ranges in four numbers; ``clipped`` is the share of all values."""
    bounds = [each.bound for each in ranges.values()]
    values = sum(each.values for each in ranges.values())
    return {
        "tensors": len(ranges),
        "median_bound": median(bounds),
        "largest_bound": max(bounds),
        "clipped": sum(each.clipped for each in ranges.values()) / max(values, 1),
    }


def _min_max(seen: ValueHistogram, _: RangeConfig) -> tuple[float, float]:
    return seen.low, seen.high


def _percentile(seen: ValueHistogram, config: RangeConfig) -> tuple[float, float]:
    tail, edges = (1 - config.percentile / 100) / 2, seen.edges
    low, high = edges[seen.bin_at(tail)], edges[seen.bin_at(1 - tail) + 1]
    return max(float(low), seen.low), min(float(high), seen.high)


def _clip(seen: ValueHistogram, config: RangeConfig) -> tuple[float, float]:
    threshold = max(seen.magnitude_at(config.clip_percentile / 100), config.clip_floor)
    return max(seen.low, -threshold), min(seen.high, threshold)


def _least_error(seen: ValueHistogram, config: RangeConfig) -> tuple[float, float]:
    fractions = np.arange(config.shrinks, 0, -1)[:, None] / config.shrinks  # the whole range first: it wins a tie
    low, high = fractions * seen.low, fractions * seen.high
    steps = 2**config.bits - 1
    step = (high - low) / steps
    bottom = step * np.round(low / step)  # the levels are multiples of the step: 0 is one of them
    top = bottom + steps * step
    filled = np.flatnonzero(seen.counts)
    left, right, counts = seen.edges[filled], seen.edges[filled + 1], seen.counts[filled]
    inside = _rounding(np.clip(right, bottom, top), step) - _rounding(np.clip(left, bottom, top), step)
    # Clipped values are all taken to lie at their bin's outer end: none is clipped for a gain that is not there.
    beyond = np.maximum(bottom - np.maximum(left, seen.low), 0) + np.maximum(np.minimum(right, seen.high) - top, 0)
    best = int(np.argmin((inside / seen.width + beyond**2) @ counts))
    return float(low[best, 0]), float(high[best, 0])


def _rounding(x: NDArray[np.float64], step: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the integral from 0 to ``x`` of the squared distance to the nearest multiple of ``step``."""
    nearest = np.round(x / step)
    return step**3 * (nearest / 12 + (x / step - nearest) ** 3 / 3)
