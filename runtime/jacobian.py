"""What is known of the read-outs' derivative in delta: a Jacobian on a growing basis."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_WITHIN = 1e-6  # squared part of a step within the basis: less than this is rounding, and says nothing
_NEW = 0.05  # part of a direction that must lie outside the basis: less than this is rounding and repetition


class Jacobian:
    """Derivatives of the read-outs along an orthonormal basis of n directions.

    Columns measured in earlier epochs stay: they were taken at other deltas, yet a column that is a little old is worth
    more than none. What a step has shown corrects them (Broyden 1965).

    Attributes
    ----------
    basis
        [n, D] orthonormal.
    readouts
        [R, t, D, n] derivative of the read-outs of each rewriting row.
    kept
        [K, D, n] derivative of the kept row's read-outs, then of those behind the bare row's target.
    guessed
        [R, n] columns that a rewriting row was given unmeasured (`RowGroups`).
    """

    def __init__(self, rows: int, tokens: int, kept: int, width: int) -> None:
        self.basis = np.zeros((0, width), np.float32)
        self.readouts = np.zeros((rows, tokens, width, 0), np.float32)
        self.kept = np.zeros((kept, width, 0), np.float32)
        self.guessed = np.zeros((rows, 0), np.bool_)

    def complement(self, candidates: Iterable[Floats], limit: int) -> Floats:
        """Return at most ``limit`` orthonormal directions [k, D], new to the basis, from candidates [D] in turn."""
        return orthonormal(candidates, limit, self.basis)

    def extend(self, directions: Floats, readouts: Floats, kept: Floats, guessed: NDArray[np.bool_]) -> None:
        """Add orthonormal new directions [k, D] with the derivatives along them, [k, R, t, D] and [k, K, D]."""
        self.basis = np.concatenate([self.basis, directions])
        self.readouts = np.concatenate([self.readouts, np.moveaxis(readouts, 0, -1)], axis=-1)
        self.kept = np.concatenate([self.kept, np.moveaxis(kept, 0, -1)], axis=-1)
        self.guessed = np.concatenate([self.guessed, guessed], axis=-1)

    def forget(self, keep: int) -> None:
        """Drop the oldest columns beyond ``keep``: what they say is no longer true, and it would be believed."""
        first = max(len(self.basis) - keep, 0)
        self.basis = self.basis[first:]
        self.readouts, self.kept = self.readouts[..., first:], self.kept[..., first:]
        self.guessed = self.guessed[:, first:]

    def correct(self, step: Floats, readouts: Floats, kept: Floats) -> None:
        """Make the Jacobian agree with the changes [R, t, D] and [K, D] that a step [D] within the basis brought."""
        along = self.basis @ step
        square = float(along @ along)
        if square <= _WITHIN * float(step @ step):
            return
        self.readouts += (readouts - self.readouts @ along)[..., None] * (along / square)
        self.kept += (kept - self.kept @ along)[..., None] * (along / square)

    def pulled_back(self, errors: Floats) -> Floats:
        """Return the known part of the gradient in delta [t, D] of the read-outs' errors [R, t, D], by position."""
        return np.asarray(np.einsum("rtd,rtdn->tn", errors, self.readouts) @ self.basis)


def orthonormal(candidates: Iterable[Floats], limit: int, basis: Floats) -> Floats:
    """Return at most ``limit`` orthonormal directions [k, D] outside a basis [n, D], from candidates [D] in turn."""
    known = basis
    found: list[Floats] = []
    remaining = iter(candidates)
    # The limit is looked at first: a candidate that was taken from an iterator is lost to the next call.
    while len(found) < limit and (candidate := next(remaining, None)) is not None:
        direction = _outside(candidate, known)
        if direction is not None:
            found.append(direction)
            known = np.concatenate([known, direction[None]])
    return np.array(found, np.float32).reshape(-1, basis.shape[1])


def _outside(candidate: Floats, basis: Floats) -> Floats | None:
    """Return the unit part of a direction [D] outside the basis, or None when too little is left."""
    norm = float(np.linalg.norm(candidate))
    if norm < 1e-9:
        return None
    direction = candidate / norm
    for _ in range(2):  # once more against rounding
        direction = direction - (basis @ direction) @ basis
    left = float(np.linalg.norm(direction))
    return np.asarray(direction / left, np.float32) if left >= _NEW else None
