"""The closed-form rank-one update of the down projection (ROME)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import NumericsError

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class RankOneUpdate:
    """A change of the down projection's weight, ``outer(delta, direction)``.

    Attributes
    ----------
    direction
        [F] float32, ``C^-1 k* / (k*^T C^-1 k*)``: its product with k* is 1.
    delta
        [D] float32, ``v* - W k*``.
    """

    direction: Floats
    delta: Floats


def rank_one_update(key: Floats, delta: Floats, inverse_covariance: Floats) -> RankOneUpdate:
    """Solve for the least change under ``C`` that maps k* to v* (Meng et al. 2022, ROME, eq. 2).

    ``W += (v* - W k*) (C^-1 k*)^T / (k*^T C^-1 k*)``

    Parameters
    ----------
    key
        [F] k*.
    delta
        [D] v* - W k*.
    inverse_covariance
        [F, F] C^-1, where C = E[k k^T] over calibration text.

    Raises
    ------
    NumericsError
        When the key has no length under C^-1.
    """
    solved = np.asarray(inverse_covariance @ key, np.float32)
    length = float(key @ solved)
    if not np.isfinite(length) or length <= 0:
        raise NumericsError("the subject's key has no length under the key statistics: export the bundle again")
    return RankOneUpdate(np.asarray(solved / length, np.float32), np.asarray(delta, np.float32))
