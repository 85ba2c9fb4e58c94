"""What the read-outs of a delta lack: the errors of its target's tokens, as gradients in the hidden state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .top_logits import TopLogits

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
_COMPETITORS = 2


@dataclass(frozen=True)
class Lack:
    """What the read-outs of a point lack, by position in the target.

    Attributes
    ----------
    errors
        [t, D] gradient of each target token's log-probability in the hidden state, mean over the rows.
    by_row
        [R, t, D] what each row adds to it.
    probabilities
        [t] of the target's tokens.
    competitors
        For each position the most probable other tokens.
    """

    errors: Floats
    by_row: Floats
    probabilities: Floats
    competitors: tuple[Integers, ...]

    @staticmethod
    def of(
        top: TopLogits,
        target: Integers,
        unembedding: Callable[[Integers], Floats],
        centre: Floats,
    ) -> Lack:
        """Return the lack of R rows.

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
        by_row = np.asarray((unembedding(target) - expected) / len(probabilities), np.float32)
        mean, wanted = probabilities.mean(axis=0), top.index(target)
        competitors = []
        for position, index in enumerate(wanted):
            order = np.argsort(-mean[position])[: _COMPETITORS + 1]
            competitors.append(top.ids[order[order != index][:_COMPETITORS]])
        return Lack(
            by_row.sum(axis=0),
            by_row,
            mean[np.arange(len(target)), wanted],
            tuple(competitors),
        )
