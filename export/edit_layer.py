"""Which layer holds the edit, as far as the model's shape tells."""

from __future__ import annotations

from mobiedit.calibration.layer_choice import candidate_layers
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.manifest import ModelShape


def predict_layer(shape: ModelShape, wanted: int | None) -> int:
    """Return the edit layer that is wanted, or for None the earliest of those that an export tries.

    Raises
    ------
    RequestError
        When the model has no such layer, or it is the last, behind which nothing could carry the fact.
    """
    last = shape.n_layers - 2
    if last < 0:
        raise RequestError("the model has a single layer: an edit needs one more behind the edit layer")
    if wanted is None:
        return candidate_layers(shape.n_layers)[0]
    if not 0 <= wanted <= last:
        raise RequestError(f"--layer {wanted} is not in the model: give 0 to {last}, or auto")
    return wanted
