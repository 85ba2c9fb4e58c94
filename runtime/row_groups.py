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

    The kept row goes with the first group, as the bare row does: what is read behind the target is in both's company.

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
        packed = directions.reshape(-1, self.count, directions.shape[1])
        return np.asarray(packed[np.arange(len(packed))[:, None], self._whose(len(packed))])

    def columns(self, readouts: Floats, kept: Floats) -> tuple[Floats, Floats]:
        """Return the derivatives along each direction, [k G, R, t, D] and [k G, K, D], of those that `deal` led to.

        A row that has not measured a direction is given the mean of those that have. The kept row, which is unlike any
        other, is given nothing.

        Parameters
        ----------
        readouts, kept
            [k, R, t, D] and [k, K, D] derivatives, each row's along its own direction.
        """
        found = np.empty((len(readouts), self.count, *readouts.shape[1:]), np.float32)
        for group in range(self.count):
            own = self._of_rows == group
            found[:, group] = readouts[:, own].mean(axis=1, keepdims=True)
            found[:, group, own] = readouts[:, own]
        found_kept = np.zeros((len(kept), self.count, *kept.shape[1:]), np.float32)
        found_kept[np.arange(len(kept)), self._whose(len(kept))[:, -1]] = kept
        return found.reshape(-1, *readouts.shape[1:]), found_kept.reshape(-1, *kept.shape[1:])

    def guessed(self, forwards: int) -> NDArray[np.bool_]:
        """Return [R + 1, k G] which columns of k forwards a row has not measured, the kept row last."""
        others = self._whose(forwards)[..., None] != np.arange(self.count)
        return np.asarray(np.moveaxis(others, 1, 0).reshape(self.rows + 1, -1))

    @property
    def _of_rows(self) -> NDArray[np.int64]:
        """[R] the group of each rewriting row."""
        return np.arange(self.rows) % self.count

    def _whose(self, forwards: int) -> NDArray[np.int64]:
        """[k, R + 1] the group that each row goes with in each forward, the kept row last."""
        of_rows = np.broadcast_to(self._of_rows, (forwards, self.rows))
        return np.column_stack([of_rows, np.zeros(forwards, np.int64)])
