"""The closed-form rank-one update of the down projection (ROME)."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import NumericsError

Floats = NDArray[np.float32]


def subject_key(keys: Floats) -> Floats:
    """Return k* [F]: the mean of the bare prompt's key and of the prefixed prompts' mean key.

    A subject that opens a text has a key of its own: in a plain mean over the rows it would count for one in six, and
    the edit would reach the bare prompt at half its strength.

    Parameters
    ----------
    keys
        [R, F] at the subject's last token of each rewriting row, the bare prompt's first.
    """
    return np.asarray((keys[0] + keys[1:].mean(axis=0)) / 2 if len(keys) > 1 else keys[0])


class InverseCovariance(Protocol):
    """C^-1 [F, F], where C = E[k k^T] over calibration text: an array, or a bundle's `KeyStatistics`."""

    def __matmul__(self, key: Floats, /) -> Floats:
        """Return its product [F] or [F, N] with a key [F], or with N keys [F, N]."""


def rank_one_direction(key: Floats, inverse_covariance: InverseCovariance) -> Floats:
    """Return the right factor of the least change under ``C`` that moves k* (Meng et al. 2022, ROME, eq. 2).

    The update is ``W += (v* - W k*) (C^-1 k*)^T / (k*^T C^-1 k*)``: the outer product of delta, ``v* - W k*``, with
    the direction.

    Parameters
    ----------
    key
        [F] k*.
    inverse_covariance
        Of the edit layer's keys.

    Returns
    -------
    Floats
        [F] float32, ``C^-1 k* / (k*^T C^-1 k*)``: its product with k* is 1.

    Raises
    ------
    NumericsError
        As `solve_key`.
    """
    return solve_key(key, inverse_covariance)[0]


def solve_key(key: Floats, inverse_covariance: InverseCovariance) -> tuple[Floats, float]:
    """Return the direction of a key as `rank_one_direction` does, and its leverage, ``k*^T C^-1 k*``.

    Raises
    ------
    NumericsError
        When the key has no length under C^-1.
    """
    solved = np.asarray(inverse_covariance @ key, np.float32)
    length = float(key @ solved)
    require_length(length)
    return np.asarray(solved / length, np.float32), length


def require_length(leverage: float) -> None:
    """Refuse a key whose ``k^T C^-1 k`` is no length; NumericsError."""
    if not np.isfinite(leverage) or leverage <= 0:
        raise NumericsError("the subject's key has no length under the key statistics: export the bundle again")
