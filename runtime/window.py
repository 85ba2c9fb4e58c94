"""What a forward computes behind the edit layer: the tokens that depend on delta, and the cache of those in front."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .decoder import LayerCache

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """The tokens that a forward computes in the suffix, and the cache of those in front.

    Attributes
    ----------
    starts
        [B] first computed token of each row.
    sizes
        [B] computed tokens of each row; what is behind them is padding.
    hidden
        [B, T, D] residual stream behind the edit layer, without delta.
    scales
        [B, T] what of delta each token receives.
    cache
        K and V of the tokens before ``starts``.
    """

    starts: Integers
    sizes: Integers
    hidden: Floats
    scales: Floats
    cache: LayerCache

    @staticmethod
    def open(
        starts: Integers, lengths: Integers, hidden: Floats, scales: Floats, sink: LayerCache, new: tuple[Floats, ...]
    ) -> Window:
        """Return the window of rows that were run whole, from ``starts`` [B] on.

        Parameters
        ----------
        lengths
            [B] tokens of each row.
        hidden, scales
            [B, T, D] and [B, T] of all tokens.
        sink, new
            The sink token's K and V, and those of all tokens.
        """
        sizes = lengths - starts
        index = np.minimum(starts[:, None] + np.arange(sizes.max()), hidden.shape[1] - 1)
        return Window(
            starts,
            sizes,
            np.take_along_axis(hidden, index[:, :, None], axis=1),
            np.take_along_axis(scales, index, axis=1),
            sink.extended(new).cut(1 + starts),
        )

    def of(self, rows: slice) -> Window:
        """Return the window of some rows, no longer than they need."""
        sizes, cache = self.sizes[rows], self.cache.take(rows)
        hidden, scales = (np.ascontiguousarray(tokens[rows, : sizes.max()]) for tokens in (self.hidden, self.scales))
        return Window(self.starts[rows], sizes, hidden, scales, cache.cut(cache.lengths))

    @property
    def tokens(self) -> int:
        """What is computed for one delta, with the padding."""
        return self.scales.size

    def repeated_cache(self, n: int) -> LayerCache:
        """Return the rows' cache for each of n deltas."""
        return self.cache.take(np.tile(np.arange(len(self.starts)), n))
