"""Which layer holds the edit."""

from __future__ import annotations

from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.manifest import ModelShape

AUTO_DEPTH = 0.35
"""Depth of the edit layer that is taken when none is asked for, as a fraction of the layers."""


def choose_layer(shape: ModelShape, wanted: int | None) -> int:
    """Return the edit layer.

    Raises
    ------
    RequestError
        When the model has no such layer, or it is the last, behind which nothing could carry the fact.
    """
    last = shape.n_layers - 2
    if last < 0:
        raise RequestError("the model has a single layer: an edit needs one more behind the edit layer")
    if wanted is None:
        return min(round(AUTO_DEPTH * shape.n_layers), last)
    if not 0 <= wanted <= last:
        raise RequestError(f"--layer {wanted} is not in the model: give 0 to {last}, or auto")
    return wanted
