"""Generation through the four graphs, with K/V caches; greedy unless told otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from .decoder import Decoder, LayerCache, Slots

Floats = NDArray[np.float32]


def most_probable(logits: Floats) -> int:
    """Return the token with the largest of the logits [V]: greedy decoding."""
    return int(logits.argmax())


class Generator:
    """Reads a text and continues it, one token a step.

    Parameters
    ----------
    decoder
        The graphs.
    slots
        The edits in force.
    """

    def __init__(self, decoder: Decoder, slots: Slots) -> None:
        self._decoder = decoder
        self._slots = slots

    def next_logits(self, ids: Sequence[int]) -> Floats:
        """Return the logits [V] of the token behind ``ids``."""
        return self._advance(ids, *self._decoder.sink_caches(1))[0]

    def all_logits(self, ids: Sequence[int]) -> Floats:
        """Return the logits [T, V] behind each token of ``ids``."""
        final, _, _ = self._read(ids, *self._decoder.sink_caches(1))
        return self._decoder.run_head(final[0])

    def tokens(
        self,
        ids: Sequence[int],
        limit: int,
        stops: Sequence[int] = (),
        choose: Callable[[Floats], int] = most_probable,
    ) -> Iterator[int]:
        """Yield at most ``limit`` tokens behind ``ids``, up to the first of ``stops``.

        Parameters
        ----------
        choose
            Logits [V] to the token that is written.
        """
        logits, prefix_cache, suffix_cache = self._advance(ids, *self._decoder.sink_caches(1))
        for produced in range(1, limit + 1):
            token = choose(logits)
            if token in stops:
                return
            yield token
            if produced < limit:
                logits, prefix_cache, suffix_cache = self._advance([token], prefix_cache, suffix_cache)

    def _advance(
        self, ids: Sequence[int], prefix_cache: LayerCache, suffix_cache: LayerCache
    ) -> tuple[Floats, LayerCache, LayerCache]:
        """Return the logits [V] behind the last of ``ids``, and the caches with ``ids`` in them."""
        final, prefix_new, suffix_new = self._read(ids, prefix_cache, suffix_cache)
        logits = self._decoder.run_head(final[:, -1])[0]
        return logits, prefix_cache.extended(prefix_new), suffix_cache.extended(suffix_new)

    def _read(
        self, ids: Sequence[int], prefix_cache: LayerCache, suffix_cache: LayerCache
    ) -> tuple[Floats, tuple[Floats, ...], tuple[Floats, ...]]:
        """Return the normalised hidden states [1, T, D] of ``ids``, and their K and V in prefix and suffix."""
        residual, prefix_new = self._decoder.run_prefix(np.array([ids], np.int64), prefix_cache)
        hidden = self._decoder.run_edit(residual, self._slots).hidden
        final, suffix_new = self._decoder.run_suffix(hidden, suffix_cache)
        return final, prefix_new, suffix_new
