"""The closed forms of many edits in force at once: ROME, MEMIT and EMMET, without a matrix of F x F.

Edit n adds ``delta_n (x) u_n`` to the down projection. Deltas stay as they were searched for; the directions u_n are
solved again whenever the set of edits changes. All of them lie in the span of the edits' own directions
``C^-1 k_n / g_n``, with the leverage ``g_n = k_n^T C^-1 k_n``, so that N edits take N x N algebra and one product
with [N, F].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .separation import separated

Doubles = NDArray[np.float64]

SILENT = 0.3
"""Activation that a gated edit may have at another one's key: its gate opens at .4, and keys vary with the context."""
_TINY = 1e-6  # relative ridge of an equality constraint: keys that coincide would make it singular
_LEAF = 64  # rows below which a triangle is inverted as any matrix
_BLOCK = 128  # rows of a product whose other half is zero or known


class Method(StrEnum):
    """How an edit is fitted in among the others of its batch, and among those before.

    ``ROME``: it is not (Meng et al. 2022, eq. 2). ``MEMIT``: by least squares (Meng et al. 2023, eq. 14). ``EMMET``: by
    equality constraints (Gupta et al. 2024, arXiv 2403.14236, eq. 8). ``GATED``: it acts through a `Gate`, on keys like
    its own alone, and is told from the others' keys as far as the gate asks for it (`mobiedit.runtime.separation`).
    """

    GATED = "gated"
    ROME = "rome"
    MEMIT = "memit"
    EMMET = "emmet"


@dataclass(frozen=True)
class Batch:
    """Edits ``start`` to ``stop``, the last left out, that are solved jointly."""

    start: int
    stop: int
    method: Method


def scaled_gram(keys: NDArray[Any], directions: NDArray[Any], leverages: Doubles) -> Doubles:
    """Return [N, N] ``k_i^T C^-1 k_j / sqrt(g_i g_j)``: the cosines of the keys under C^-1.

    Parameters
    ----------
    keys, directions
        [N, F] k_n and ``C^-1 k_n / g_n``.
    leverages
        [N] g_n.
    """
    gram = np.eye(len(keys))
    lengths = np.sqrt(leverages)
    for start in range(0, len(keys), _BLOCK):
        rows, before = slice(start, start + _BLOCK), slice(0, start + _BLOCK)
        gram[rows, before] = (keys[rows] @ directions[before].T) * (lengths[before] / lengths[rows, None])
    gram = np.tril(gram, -1)
    return gram + gram.T + np.eye(len(gram))


def coefficients(gram: Doubles, leverages: Doubles, batches: Sequence[Batch], ridge: float) -> Doubles:
    """Return B [N, N] with ``U = B @ directions``: the directions u_n of all edits, joint in each batch.

    With ``s_n = C^-1 k_n``, S_b the rows of batch b and S_< those of all batches before it:

    - what earlier keys see of a batch is taken out, ``S'_b = S_b - G_b< (G_<< + ridge diag(g_<))^-1 S_<``, and
      ``G'_b = K_b S'_b^T`` is what is left of its own Gram matrix;
    - EMMET: ``U_b = G'_b^-1 S'_b``, so that u_n . k_m is 1 for n = m and 0 for the batch's others;
    - MEMIT: ``U_b = (G'_b + ridge diag(g'_b))^-1 S'_b``; an edit of its own shrinks by 1 / (1 + ridge);
    - ROME: ``u_n = s_n / g_n``, whatever else is there;
    - gated edits: the least u_n with ``u_n . k_n = 1`` and ``u_n . k_m <= SILENT`` at the batch's other keys and all
      before it, as far as `separated` finds it.

    A later edit never changes an earlier one's direction. A key that an earlier edit has too is not a contradiction:
    what the ridge leaves of its direction is scaled up again, or it is left as it is behind a gate, and both deltas add
    there.

    Parameters
    ----------
    gram, leverages
        As `scaled_gram` returns and takes them.
    batches
        In order, all edits.
    ridge
        Above 0, relative to the leverages.

    Raises
    ------
    LinAlgError
        When ``gram`` is not one of keys under any C^-1.
    """
    remaining = _Remaining(np.asarray(np.linalg.cholesky(gram + ridge * np.eye(len(gram))), np.float64), ridge)
    lengths = np.sqrt(leverages)
    solved = np.zeros_like(gram)
    for batch in batches:
        own, known = slice(batch.start, batch.stop), slice(0, batch.stop)
        if batch.method is Method.ROME:
            solved[own, own] = np.eye(batch.stop - batch.start)
        elif batch.method is Method.GATED:
            solved[own, known] = [
                separated(gram[known, known], place, SILENT * lengths[place] / lengths[known])
                for place in range(batch.start, batch.stop)
            ]
        else:
            solved[own, known] = remaining.rows(batch)
    return solved * (lengths / lengths[:, None])


@dataclass(frozen=True, eq=False)
class _Remaining:
    """What earlier keys leave of each batch.

    One Cholesky factor serves every batch: with ``gram + ridge = L L^T``, S'_b is ``L_bb (L^-1 S)_b``.
    """

    lower: Doubles
    ridge: float

    @cached_property
    def inverse(self) -> Doubles:
        """L^-1, which is dear, and which no gated edit needs."""
        return lower_inverse(self.lower)

    def rows(self, batch: Batch) -> Doubles:
        """Return the rows of B [b, stop] for a batch of EMMET's or MEMIT's, but for the leverages."""
        own = slice(batch.start, batch.stop)
        block = self.lower[own, own]
        left = block @ block.T - self.ridge * np.eye(len(block))
        shift = self.ridge if batch.method is Method.MEMIT else _TINY
        weights = np.linalg.inv(left + shift * np.diag(np.diag(left)))
        rows = weights @ (block @ self.inverse[own, : batch.stop])
        if batch.method is not Method.MEMIT:
            rows /= np.einsum("ij,ji->i", weights, left)[:, None]  # u_n . k_n = 1
        return np.asarray(rows)


def joint_directions(solved: Doubles, directions: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``U = B @ directions`` [N, F] for a lower block triangle B, as `coefficients` returns it; in float32.

    A row of B that has nothing but a one gives its direction to the bit.
    """
    joint = np.empty_like(directions)
    narrow = solved.astype(directions.dtype)
    for start in range(0, len(narrow), _BLOCK):
        rows = slice(start, start + _BLOCK)
        stop = int(np.flatnonzero(narrow[rows].any(axis=0)).max()) + 1
        joint[rows] = narrow[rows, :stop] @ directions[:stop]
    return joint


def lower_inverse(lower: Doubles) -> Doubles:
    """Return the inverse of a lower triangle [N, N], by halves."""
    count = len(lower)
    if count <= _LEAF:
        return np.tril(np.linalg.inv(lower))
    half = count // 2
    inverse = np.zeros_like(lower)
    inverse[:half, :half] = lower_inverse(lower[:half, :half])
    inverse[half:, half:] = lower_inverse(lower[half:, half:])
    inverse[half:, :half] = -inverse[half:, half:] @ (lower[half:, :half] @ inverse[:half, :half])
    return inverse


def levels_of_same_keys(gram: Doubles, same_key: float) -> tuple[int, ...]:
    """Return for each edit after how many others of its own key it comes.

    Edits of one level have keys of their own: no two have a squared cosine under C^-1 above ``same_key``. Solved
    jointly, two edits of one key would have to undo each other; one upon the other they add.
    """
    levels: list[int] = []
    for row in np.square(gram) > same_key:
        levels.append(max((levels[other] + 1 for other in np.flatnonzero(row[: len(levels)])), default=0))
    return tuple(levels)
