"""The export's stage that rotates the residual stream of the loaded model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch

from mobiedit.calibration.rotation import rotate_model
from mobiedit.runtime.errors import ExportError

from .check import FP32_TOLERANCE
from .checkpoint import Checkpoint

_TOKENS = 32  # of the text on which logits are compared


@dataclass(frozen=True)
class RotatedCheckpoint:
    """A checkpoint whose model is rotated, and what the manifest says of it."""

    checkpoint: Checkpoint
    evidence: dict[str, str | float]


@torch.no_grad()
def rotate_checkpoint(checkpoint: Checkpoint) -> RotatedCheckpoint:
    """Rotate the model in place, and see that its logits stay.

    The head is untied from then on. The hash of the weights becomes one of the source's and the rotation's name: an
    edit's delta lies in the residual stream, so a rotated bundle must not take the edits of one that is not, or is
    rotated otherwise.

    Raises
    ------
    ExportError
        When the logits are others.
    """
    model, base = checkpoint.model, checkpoint.base
    for parameter in model.parameters():
        parameter.data = parameter.data.float()  # in half precision what is rotated would be rounded
    ids = torch.linspace(0, checkpoint.shape.vocabulary - 1, _TOKENS, dtype=torch.float64).long()[None]
    before = model(ids).logits
    name = rotate_model(model)
    difference = float((model(ids).logits - before).abs().max())
    if not difference <= FP32_TOLERANCE:
        raise ExportError(
            f"the rotated model differs from the source model by {difference:.2g} in a logit "
            f"(limit {FP32_TOLERANCE:g}): use --no-rotate; nothing was written"
        )
    sha256 = rotated_sha256(base.weights_sha256, name)
    rotated = replace(
        checkpoint, base=replace(base, weights_sha256=sha256), shape=replace(checkpoint.shape, tied_head=False)
    )
    return RotatedCheckpoint(rotated, {"name": name, "largest_logit_difference": difference})


def rotated_sha256(weights_sha256: str, rotation: str) -> str:
    """Return the hash of weights that a rotation of this name was folded into, from their own."""
    return hashlib.sha256(f"{weights_sha256}:{rotation}".encode()).hexdigest()
