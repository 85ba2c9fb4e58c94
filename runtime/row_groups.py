"""Which rows of a forward measure which direction.

Nothing asks that the rows of a forward carry the same delta. Rows of one fact are much alike in their derivatives: a
direction that some of them have measured is roughly known in the others. So a forward measures as many directions as
there are groups of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class RowGroups:
    """R rewriting rows in G groups, dealt out in turn.

    In a forward the kept row goes with the first group, as the bare row does. It is unlike any other, and short: what
    the other groups measure, it measures alone.

    Attributes
    ----------
    rows
        R.
    count
        G, from 1 to R.
    """

    rows: int
    count: int

    def deal(self, directions: Floats) -> Floats:
        """Return what each row of k forwards measures [k, R + 1, D], of k G directions [k G, D]; the kept row last."""
        return np.asarray(self._packed(directions)[:, np.append(self._of_rows, 0)])

    def left(self, directions: Floats) -> Floats:
        """Return the directions [k (G - 1), D] of k G that the kept row has not measured in the forwards of `deal`."""
        return np.asarray(self._packed(directions)[:, 1:].reshape(-1, directions.shape[1]))

    def columns(self, readouts: Floats, kept: Floats, alone: Floats) -> tuple[Floats, Floats]:
        """Return the derivatives along each direction, [k G, R, t, D] and [k G, K, D], of those that `deal` led to.

        A row that has not measured a direction is given the mean of those that have. Of what is read behind the bare
        row's target, which is in the kept row's company, nothing is known along the others' directions.

        Parameters
        ----------
        readouts, kept
            [k, R, t, D] and [k, K, D] derivatives, each row's along its own direction.
        alone
            [k (G - 1), K', D] the kept row's along the directions `left` by `deal`: the first K' of the K.
        """
        found = np.empty((len(readouts), self.count, *readouts.shape[1:]), np.float32)
        for group in range(self.count):
            own = self._of_rows == group
            found[:, group] = readouts[:, own].mean(axis=1, keepdims=True)
            found[:, group, own] = readouts[:, own]
        found_kept = np.zeros((len(kept), self.count, *kept.shape[1:]), np.float32)
        found_kept[:, 0] = kept
        found_kept[:, 1:, : alone.shape[1]] = alone.reshape(len(kept), self.count - 1, *alone.shape[1:])
        return found.reshape(-1, *readouts.shape[1:]), found_kept.reshape(-1, *kept.shape[1:])

    def guessed(self, forwards: int) -> NDArray[np.bool_]:
        """Return [R, k G] which columns of k forwards a rewriting row has not measured."""
        return np.tile(self._of_rows[:, None] != np.arange(self.count), forwards)

    @property
    def _of_rows(self) -> NDArray[np.int64]:
        """[R] the group of each rewriting row."""
        return np.arange(self.rows) % self.count

    def _packed(self, directions: Floats) -> Floats:
        """Return k G directions [k G, D] by forward and group [k, G, D]."""
        return directions.reshape(-1, self.count, directions.shape[1])
