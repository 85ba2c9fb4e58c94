"""The rows of the source model that belong to tokens: the embedding, and the head's where they are others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mobiedit.calibration.widened import HALVES
from mobiedit.runtime.errors import ExportError

from .checkpoint import Checkpoint

_ROWS = 8192  # looked at at a time: a copy of an embedding can be a gigabyte


def half_suffices(checkpoint: Checkpoint) -> bool:
    """Return whether FP16 holds the rows: if stored in a half that fits. bfloat16 loses what is below 3e-8."""
    rows = _stored_rows(checkpoint).values()
    return all(each.dtype in HALVES.values() and _fits_half(each) for each in rows)


def token_rows(checkpoint: Checkpoint) -> dict[str, NDArray[np.float16] | NDArray[np.float32]]:
    """Return the embedding [V, D], and the head's rows where they are others: in FP16 where that suffices, or FP32."""
    half = half_suffices(checkpoint)
    return {name: (rows.half() if half else rows.float()).numpy() for name, rows in _stored_rows(checkpoint).items()}


def half_token_rows(checkpoint: Checkpoint) -> dict[str, NDArray[np.float16]]:
    """Return the same rows in FP16.

    Raises
    ------
    ExportError
        When a number does not fit.
    """
    stored = _stored_rows(checkpoint)
    if not all(map(_fits_half, stored.values())):
        raise ExportError("the embedding does not fit FP16: use --precision fp32")
    return {name: rows.half().numpy() for name, rows in stored.items()}


def _fits_half(rows: Tensor) -> bool:
    return all(bool(piece.half().isfinite().all()) for piece in rows.split(_ROWS))


def _stored_rows(checkpoint: Checkpoint) -> dict[str, Tensor]:
    model = checkpoint.model
    rows = {"embedding": model.model.embed_tokens.weight.detach()}
    if not checkpoint.shape.tied_head:
        rows["unembedding"] = model.lm_head.weight.detach()
    return rows
