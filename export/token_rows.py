"""The rows of the source model that belong to tokens: the embedding, and the head's where they are others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mobiedit.calibration.widened import HALVES
from mobiedit.runtime.errors import ExportError

from .checkpoint import Checkpoint


def token_rows(checkpoint: Checkpoint) -> dict[str, NDArray[np.float16] | NDArray[np.float32]]:
    """Return the embedding [V, D], and the head's rows where they are others.

    FP32; but FP16 of a checkpoint in half precision whose numbers fit: bfloat16 loses what is below 3e-8.
    """
    stored = _stored_rows(checkpoint)
    if all(rows.dtype in HALVES.values() for rows in stored.values()):
        halves = {name: rows.half() for name, rows in stored.items()}
        if all(rows.isfinite().all() for rows in halves.values()):
            return {name: rows.numpy() for name, rows in halves.items()}
    return {name: rows.float().numpy() for name, rows in stored.items()}


def half_token_rows(checkpoint: Checkpoint) -> dict[str, NDArray[np.float16]]:
    """Return the same rows in FP16.

    Raises
    ------
    ExportError
        When a number does not fit.
    """
    halves = {name: rows.half().numpy() for name, rows in _stored_rows(checkpoint).items()}
    if not all(np.isfinite(rows).all() for rows in halves.values()):
        raise ExportError("the embedding does not fit FP16: use --precision fp32")
    return halves


def _stored_rows(checkpoint: Checkpoint) -> dict[str, Tensor]:
    model = checkpoint.model
    rows = {"embedding": model.model.embed_tokens.weight.detach()}
    if not checkpoint.shape.tied_head:
        rows["unembedding"] = model.lm_head.weight.detach()
    return rows
