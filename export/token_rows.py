"""The rows of the source model that belong to tokens: the embedding, and the head's where they are others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mobiedit.runtime.errors import ExportError

from .checkpoint import Checkpoint


def token_rows(checkpoint: Checkpoint) -> dict[str, NDArray[np.float32]]:
    """Return the embedding [V, D], and the head's rows where they are others."""
    model = checkpoint.model
    rows = {"embedding": model.model.embed_tokens.weight.detach().numpy()}
    if not checkpoint.shape.tied_head:
        rows["unembedding"] = model.lm_head.weight.detach().numpy()
    return rows


def half_token_rows(checkpoint: Checkpoint) -> dict[str, NDArray[np.float16]]:
    """Return the same rows in FP16.

    Raises
    ------
    ExportError
        When a number does not fit.
    """
    halves = {name: rows.astype(np.float16) for name, rows in token_rows(checkpoint).items()}
    if not all(np.isfinite(rows).all() for rows in halves.values()):
        raise ExportError("the embedding does not fit FP16: use --precision fp32")
    return halves
