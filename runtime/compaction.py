"""More edits than slots: their joint update as the nearest one whose rank the slots can hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import RequestError

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class CompactionConfig:
    """When an update may be replaced by one of lower rank.

    Attributes
    ----------
    tolerance
        What the replacement may change of an edit's effect at its own key, relative to its delta.
    text_weight
        What the effect on calibration text counts beside that on the edits' own keys.
    """

    tolerance: float = 0.05
    text_weight: float = 0.1

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if not all(math.isfinite(x) and x >= 0 for x in (self.tolerance, self.text_weight)):
            raise RequestError("tolerance and text weight of a compaction must be 0 or more: give finite numbers")


@dataclass(frozen=True)
class Compacted:
    """An update of rank K: ``deltas.T @ (mix @ directions)``.

    Attributes
    ----------
    deltas
        [K, D].
    mix
        [K, N] in terms of the edits' own directions.
    error
        The largest change of an edit's effect at its own key, relative to its delta.
    """

    deltas: Doubles
    mix: Doubles
    error: float


def compact(
    deltas: NDArray[Any], coefficients: Doubles, gram: Doubles, leverages: Doubles, rank: int, text_weight: float
) -> Compacted:
    """Return the update of N edits cut to a rank; it is exact where their deltas span no more.

    The update X is cut so that the least is lost of ``sum_n |X k_n|^2 + text_weight mean(g) tr(X C X^T)``: what it does
    at the edits' own keys, and to the mean square of calibration text's values.

    Parameters
    ----------
    deltas
        [N, D].
    coefficients
        [N, N] B, as `closed_form.coefficients` returns it: ``X = deltas.T @ B @ directions``.
    gram, leverages
        [N, N] and [N], as in `closed_form`.
    """
    lengths = np.sqrt(leverages)
    effects = gram * (lengths / lengths[:, None])  # [N, N] what a direction does at each key
    spread = gram / lengths / lengths[:, None]  # [N, N] products of directions under C
    wide = deltas.astype(np.float64)
    # An orthonormal basis of what the deltas span: all else is done in its min(D, N) coordinates.
    basis, coordinates = np.linalg.qr(wide.T @ coefficients)
    at_keys = coordinates @ effects
    kept = at_keys @ at_keys.T + text_weight * float(leverages.mean()) * (coordinates @ spread @ coordinates.T)
    chosen = np.linalg.eigh((kept + kept.T) / 2)[1][:, ::-1][:, :rank]
    cut = chosen.T @ coordinates
    norms = np.linalg.norm(wide, axis=-1)
    size = float(norms.max())
    lost = np.linalg.norm(at_keys - chosen @ (cut @ effects), axis=0)
    error = float((lost / np.where(norms > 0, norms, size)).max()) if size > 0 else 0.0
    size = size or 1.0  # slots of a delta's usual length: some providers compute them in FP16
    return Compacted(size * (basis @ chosen).T, cut / size, error)
