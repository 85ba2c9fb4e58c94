"""The most probable tokens of read-outs, and the mass of all others: enough of a softmax to optimise with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class TopLogits:
    """A truncated softmax for each of M hidden states.

    Attributes
    ----------
    ids
        [K] the tokens that are among the top of any hidden state, sorted, the wanted ones included.
    logits
        [M, K] theirs.
    rest
        [M] log of the summed exponentials of all other logits.
    """

    ids: Integers
    logits: Floats
    rest: Floats

    def probabilities(self) -> Floats:
        """[M, K] probability of each kept token under the whole softmax."""
        everything = np.logaddexp(_log_sum(self.logits), self.rest)
        return np.asarray(np.exp(self.logits - everything[:, None]))

    def index(self, tokens: Integers) -> Integers:
        """Return where ``tokens``, which must be among ``ids``, stand in them."""
        return np.searchsorted(self.ids, tokens)


def top_logits(head: Callable[[Floats], Floats], hidden: Floats, keep: int, wanted: Integers) -> TopLogits:
    """Run the head over hidden states [M, D] and keep what matters.

    Parameters
    ----------
    keep
        Most probable tokens of each hidden state.
    wanted
        Tokens that are kept whatever their probability.
    """
    logits = head(hidden)
    keep = min(keep, logits.shape[1] - 1)
    # Row by row here and below: a copy of all logits, or a place in them for each, would be as large as they are.
    ids = np.unique(np.concatenate([*(np.argpartition(-row, keep)[:keep] for row in logits), wanted]))
    kept = logits[:, ids]
    everything = np.concatenate([_log_sum(row[None]) for row in logits])
    # The rest is small next to what is kept: from the difference of logarithms, bounded away from rounding.
    inside = np.exp(_log_sum(kept) - everything)
    rest = np.log(np.maximum(1 - inside, 1e-7)) + everything
    return TopLogits(ids, kept, np.asarray(rest, np.float32))


def _log_sum(logits: Floats) -> Floats:
    top = logits.max(axis=-1)
    return np.asarray(top + np.log(np.exp(logits - top[:, None]).sum(axis=-1)))
