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
    """What the read-outs of a point lack, mean over the rows: by position in the target.

    Attributes
    ----------
    errors
        [t, D] gradient of each target token's log-probability in the hidden state.
    shares
        [G, t, D] the part of each group of rows in them.
    probabilities
        [t] of the target's tokens.
    competitors
        For each position the most probable other tokens.
    """

    errors: Floats
    shares: Floats
    probabilities: Floats
    competitors: tuple[Integers, ...]

    @staticmethod
    def of(
        top: TopLogits,
        target: Integers,
        groups: Integers,
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
        groups
            [R] the group of each row, counted from 0.
        unembedding
            Tokens [M] to rows [M, D].
        centre
            [D] the mean row, which stands for all tokens that are not at the top.
        """
        by_row = top.probabilities().reshape(-1, len(target), len(top.ids))
        rest = 1 - by_row.sum(axis=-1, keepdims=True)
        expected = by_row @ unembedding(top.ids) + rest * centre
        errors = (unembedding(target) - expected) / len(by_row)
        shares = np.stack([errors[groups == group].sum(axis=0) for group in range(int(groups.max()) + 1)])
        probabilities, wanted = by_row.mean(axis=0), top.index(target)
        competitors = []
        for position, index in enumerate(wanted):
            order = np.argsort(-probabilities[position])[: _COMPETITORS + 1]
            competitors.append(top.ids[order[order != index][:_COMPETITORS]])
        return Lack(
            np.asarray(shares.sum(axis=0), np.float32),
            np.asarray(shares, np.float32),
            probabilities[np.arange(len(target)), wanted],
            tuple(competitors),
        )
