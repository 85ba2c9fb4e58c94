"""One edit as a search problem: deltas in, hidden states at the read-outs out, with everything else computed once.

Delta is added to the value at the subject's last token. So the layers up to the edit layer, and above it the tokens before the subject's
last one, do not depend on delta: keeping them is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .configuration import PrefixCache
from .costs import CostMeter
from .decoder import Decoder, EditLayerOutput, LayerCache, Slots
from .prompt_rows import PromptRows

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """The tokens that a forward computes in the suffix, and the cache of those in front.

    Attributes
    ----------
    starts
        [B] first computed token of each row.
    hidden
        [B, T, D] residual stream behind the edit layer, without delta.
    cache
        K and V of the tokens before ``starts``.
    """

    starts: Integers
    hidden: Floats
    cache: LayerCache


class EditProblem:
    """The rows of an edit with their caches.

    Parameters
    ----------
    prefix_cache
        What a forward reuses.
    stale_tokens
        Tokens of each row that the stale policy keeps.

    Attributes
    ----------
    keys
        [B, F] keys at the subject's last token.
    value
        [D] value at the subject's last token of the bare prompt.
    initial_readouts, initial_subject
        The read-outs without delta, as ``readouts`` returns them for one delta.
    """

    def __init__(
        self,
        decoder: Decoder,
        rows: PromptRows,
        slots: Slots,
        meter: CostMeter,
        prefix_cache: PrefixCache = PrefixCache.EXACT,
        stale_tokens: int = 10,
    ) -> None:
        self._decoder = decoder
        self._rows = rows
        self._slots = slots
        self._meter = meter
        self._policy = prefix_cache
        self._ids = rows.padded_ids()
        edited = self._edit_layer(self._ids)
        self._hidden = edited.hidden
        batch = np.arange(len(rows.all))
        self.keys = edited.keys[batch, rows.subjects]
        self.value = edited.values[0, rows.subjects[0]]
        first_readout = np.array([row.readouts[0] for row in rows.all])
        self._stale_starts = np.minimum(stale_tokens, first_readout)
        final, new = decoder.run_suffix(self._hidden, self._sink(len(batch)))
        self.initial_readouts, self.initial_subject = self._read(final[None], np.zeros_like(rows.lengths))
        self._window = self._open_window(new)
        self._expanded: tuple[int, LayerCache] | None = None

    def readouts(self, deltas: Floats) -> tuple[Floats, Floats]:
        """Run one forward for each delta.

        Parameters
        ----------
        deltas
            [N, D].

        Returns
        -------
        tuple
            Normalised hidden states at the read-outs of the rewriting rows [N, R, t, D], and of the subject row [N, D].
        """
        n, rows = len(deltas), len(self._rows.all)
        self._meter.forwards += n
        hidden = self._hidden_for(n)
        relative = self._rows.subjects - self._window.starts
        seen = np.flatnonzero(relative >= 0)  # the stale policy hides the subject where it keeps it
        hidden[:, seen, relative[seen]] += deltas[:, None, :]
        final, _ = self._decoder.run_suffix(hidden.reshape(n * rows, *hidden.shape[2:]), self._cache_for(n))
        return self._read(final.reshape(n, rows, *final.shape[1:]), self._window.starts)

    def refresh(self, delta: Floats) -> None:
        """Compute the stale policy's cache again, with ``delta`` [D] in place; the other policies have nothing to do."""
        if self._policy is not PrefixCache.STALE:
            return
        hidden = self._hidden.copy()
        hidden[np.arange(len(hidden)), self._rows.subjects] += delta
        _, new = self._decoder.run_suffix(hidden, self._sink(len(hidden)))
        self._window = self._open_window(new)
        self._expanded = None

    def _open_window(self, new: tuple[Floats, ...]) -> Window:
        """Return the window of the policy, from the suffix's K and V of all tokens."""
        batch = len(self._rows.all)
        if self._policy is PrefixCache.OFF:
            return Window(np.zeros(batch, np.int64), self._hidden, self._sink(batch))
        starts = self._rows.subjects if self._policy is PrefixCache.EXACT else self._stale_starts
        tokens = int((self._rows.lengths - starts).max())
        index = np.minimum(starts[:, None] + np.arange(tokens), self._hidden.shape[1] - 1)
        hidden = np.take_along_axis(self._hidden, index[:, :, None], axis=1)
        return Window(starts, hidden, self._sink(batch).extended(new).cut(1 + starts))

    def _hidden_for(self, n: int) -> Floats:
        """[N, B, T, D] the window's tokens for each delta; without a cache they are computed again from the embeddings on."""
        if self._policy is PrefixCache.OFF:
            hidden = self._edit_layer(np.tile(self._ids, (n, 1))).hidden
            return hidden.reshape(n, -1, *hidden.shape[1:])
        return np.repeat(self._window.hidden[None], n, axis=0)

    def _cache_for(self, n: int) -> LayerCache:
        # Steps come with the same number of deltas again and again: the repeated cache is worth keeping.
        if self._expanded is None or self._expanded[0] != n:
            rows = np.tile(np.arange(len(self._rows.all)), n)
            self._expanded = (n, self._window.cache.take(rows))
        return self._expanded[1]

    def _edit_layer(self, ids: Integers) -> EditLayerOutput:
        residual, _ = self._decoder.run_prefix(ids, self._decoder.sink_caches(len(ids))[0])
        return self._decoder.run_edit(residual, self._slots)

    def _sink(self, batch: int) -> LayerCache:
        return self._decoder.sink_caches(batch)[1]

    def _read(self, final: Floats, starts: Integers) -> tuple[Floats, Floats]:
        """Pick the read-outs out of hidden states [N, B, T, D] that start at ``starts``."""
        rewriting = np.stack(
            [final[:, b, np.array(row.readouts) - starts[b]] for b, row in enumerate(self._rows.rewriting)], axis=1
        )
        subject = self._rows.subject_row
        return rewriting, final[:, -1, subject.readouts[0] - starts[-1]]
