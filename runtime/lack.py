"""What the read-outs of a delta lack: the errors of its target's tokens, as gradients in the hidden state."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .top_logits import TopLogits

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


def lack_of(
    top: TopLogits,
    target: Integers,
    unembedding: Callable[[Integers], Floats],
    centre: Floats,
) -> Floats:
    """Return the gradient [R, t, D] of each target token's log-probability, mean over R rows, in their hidden states.

    Parameters
    ----------
    top
        Of all read-outs, those of a row together; the target's tokens among them.
    target
        [t] its tokens.
    unembedding
        Tokens [M] to rows [M, D].
    centre
        [D] the mean row, which stands for all tokens that are not at the top.
    """
    probabilities = top.probabilities().reshape(-1, len(target), len(top.ids))
    rest = 1 - probabilities.sum(axis=-1, keepdims=True)
    expected = probabilities @ unembedding(top.ids) + rest * centre
    return np.asarray((unembedding(target) - expected) / len(probabilities), np.float32)
