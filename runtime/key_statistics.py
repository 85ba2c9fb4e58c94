"""The key statistics of a bundle: C^-1 of the edit layer's keys in a compact form, whose large part stays in its file.

    C^-1 ~ S^-1 (I - U^T W U) S^-1

U [r, F] has the leading eigenvectors of S^-1 C S^-1 as rows, W is diagonal and says how far each of them is suppressed:
1 - rho / lambda, rho standing for the eigenvalues that were cut. S^-1 is diagonal and holds 1 / sqrt(rho). See
`mobiedit.calibration.compact_statistics`, which makes it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .bundle_parts import read_tensor
from .errors import BundleError
from .stored_matrix import StoredMatrix

Floats = NDArray[np.float32]

DIRECTIONS, WEIGHTS, SCALE = "directions", "weights", "scale"
"""The tensors' names: U, the diagonal of W, the diagonal of S^-1."""


@dataclass(frozen=True)
class KeyStatistics:
    """C^-1 [F, F] as an operator.

    Attributes
    ----------
    directions
        U [r, F] float16, the strongest direction first; it stays in its file.
    weights
        [r] float32, the diagonal of W, from 0 (as if cut) to 1 (fully suppressed).
    scale
        [F] float32, the diagonal of S^-1.
    """

    directions: StoredMatrix
    weights: Floats
    scale: Floats

    @staticmethod
    def find(path: Path) -> KeyStatistics:
        """Return the statistics of a file; its directions are not read.

        Raises
        ------
        BundleError
            When the file is missing or damaged, or does not hold key statistics.
        """
        directions = StoredMatrix.find(path, DIRECTIONS)
        weights, scale = read_tensor(path, WEIGHTS), read_tensor(path, SCALE)
        rank, width = directions.shape
        if (
            directions.dtype != np.float16
            or weights.dtype != np.float32
            or scale.dtype != np.float32
            or (weights.shape, scale.shape) != ((rank,), (width,))
            or not 0 < rank <= width
        ):
            raise BundleError(
                f"{path.name} has tensors of other shapes or types than key statistics: export the bundle again"
            )
        if not (np.isfinite(scale).all() and (scale > 0).all() and (weights >= 0).all() and (weights <= 1).all()):
            raise BundleError(f"{path.name} has numbers that no key statistics have: export the bundle again")
        return KeyStatistics(directions, weights, scale)

    def __matmul__(self, keys: Floats) -> Floats:
        """Return the products [F] or [F, N] of C^-1 with one key [F] or with N [F, N], in float32.

        The file is read once, whatever N is: a block of directions serves both of its products.

        Raises
        ------
        BundleError
            When the keys are of another width, or the file has changed under the statistics.
        """
        if len(keys) != len(self.scale):
            raise BundleError(
                f"the key statistics are for keys of width {len(self.scale)}, not {len(keys)}: export the bundle again"
            )
        scale = self.scale if keys.ndim == 1 else self.scale[:, None]
        weights = self.weights if keys.ndim == 1 else self.weights[:, None]
        scaled = np.asarray(scale * keys, np.float32)
        rest = scaled.copy()
        for first, block in self.directions.blocks():
            rest -= block.T @ (weights[first : first + len(block)] * (block @ scaled))
        return np.asarray(scale * rest, np.float32)

    def null_space(self, share: float) -> KeyStatistics:
        """Return statistics that suppress the leading directions entirely and treat all others alike.

        ``S^-1 (I - U_top^T U_top) S^-1``: the projection of AlphaEdit (Fang et al. 2025, arXiv 2410.02355), taken where
        the keys have been scaled. An update leaves alone what lies in the leading directions.

        Parameters
        ----------
        share
            Of the sum of all eigenvalues, what the suppressed directions hold at least: above 0, at most 1. Where the
            stored ones hold less, all of them are suppressed.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share is {share}, it must be above 0 and at most 1")
        # In units of rho; a weight of 1 stands for an eigenvalue beyond float32's reach.
        values = 1 / np.maximum(1 - self.weights.astype(np.float64), np.finfo(np.float32).eps)
        wanted = share * (values.sum() + len(self.scale) - len(values))
        top = 1 + int(np.searchsorted(values.cumsum(), wanted))
        return replace(self, weights=(np.arange(len(values)) < top).astype(np.float32))
