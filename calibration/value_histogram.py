"""What a tensor's values are like, from pieces that are looked at once and forgotten."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 4096
"""Bins of a histogram, a power of two: half of them below 0."""

_FIRST_EXPONENT = -960  # of the range before any value is seen: below every magnitude, above float64's subnormals


class Extremes:
    """The least and the largest value of a tensor, 0 always among them.

    Attributes
    ----------
    low, high
        The least and the largest value seen, or 0.
    values
        Values seen.
    """

    def __init__(self) -> None:
        self.low = self.high = 0.0
        self.values = 0

    def add(self, values: NDArray[Any]) -> None:
        """Take the values of an array of any shape.

        Raises
        ------
        ValueError
            When one of them is not finite.
        """
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("a value is not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.values += values.size


class ValueHistogram(Extremes):
    """The extremes, and how many values lie where.

    ``BINS`` equal bins cover [-R, R), R being the least power of two above every magnitude seen. A larger one doubles
    R by merging the bins in pairs. Widths are powers of two, so no rounding moves a value to another bin: the result
    is the same in whatever order and pieces the values come.

    Memory: 8 bytes a bin, 32 KiB, however many values are seen; and 24 bytes a value of the piece that is added.

    Attributes
    ----------
    counts
        [BINS] values in each bin.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts = np.zeros(BINS, np.int64)
        self._exponent = _FIRST_EXPONENT

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(2.0 / BINS, self._exponent)

    @property
    def edges(self) -> NDArray[np.float64]:
        """[BINS + 1] where the bins begin and the last one ends."""
        return np.arange(-BINS // 2, BINS // 2 + 1) * np.float64(self.width)

    def add(self, values: NDArray[Any]) -> None:
        """Take the values of an array of any shape.

        Raises
        ------
        ValueError
            When one of them is not finite.
        """
        super().add(values)
        if self.low < self.high:  # not zeros alone, which every range holds
            self._widen(math.frexp(max(-self.low, self.high))[1])
        bins = np.floor(values.ravel().astype(np.float64) / self.width).astype(np.int64) + BINS // 2
        self.counts += np.bincount(bins, minlength=BINS)

    def _widen(self, exponent: int) -> None:
        """Let the bins cover magnitudes below two to the power of ``exponent``."""
        doublings = max(0, exponent - self._exponent)
        for _ in range(min(doublings, BINS.bit_length())):  # by then all values are in the two bins beside 0
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.pad(pairs, BINS // 4)
        self._exponent += doublings

    def bin_at(self, share: float) -> int:
        """Return the first bin up to whose end at least ``share`` of all values lie."""
        return int(np.searchsorted(np.cumsum(self.counts), share * self.values))

    def magnitude_at(self, share: float) -> float:
        """Return the least bin edge below which at least ``share`` of all magnitudes lie."""
        negative, positive = self.counts[: BINS // 2][::-1], self.counts[BINS // 2 :]
        return self.width * (1 + int(np.searchsorted(np.cumsum(negative + positive), share * self.values)))

    def outside(self, low: float, high: float) -> float:
        """Return how many values are below ``low`` or above ``high``; a bin's values are taken to be spread evenly."""
        below = np.interp([low, high], self.edges, np.concatenate([[0], np.cumsum(self.counts)]))
        under = below[0] if low > self.low else 0.0  # a bin reaches beyond the extremes, its values do not
        over = self.values - below[1] if high < self.high else 0.0
        return float(under + over)
