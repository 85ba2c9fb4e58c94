"""Rotary position factors and attention masks: the inputs of a decoder segment that depend on positions alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def rotary_factors(
    positions: NDArray[np.int64], inverse_frequencies: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return cos and signed sin, each [B, 1, T, head_dim], for positions [B, T] (Su et al. 2021, eq. 34).

    The first half of the sine is negative: the graph adds ``x * cos`` and the swapped halves of ``x`` times ``sin``.
    """
    angles = positions[:, None, :, None].astype(np.float32) * inverse_frequencies
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([cos, cos], axis=-1), np.concatenate([-sin, sin], axis=-1)


def attention_mask(past_lengths: NDArray[np.int64], past: int, tokens: int, mask_value: float) -> NDArray[np.float32]:
    """Return the additive mask [B, 1, T, P + T] of causal attention.

    Row ``b`` sees the first ``past_lengths[b]`` of ``past`` cached tokens, and new tokens up to its own.
    """
    cached = np.where(np.arange(past) < past_lengths[:, None], 0.0, mask_value)
    causal = np.triu(np.full((tokens, tokens), mask_value), 1)
    batch = len(past_lengths)
    return np.concatenate(
        [
            np.broadcast_to(cached[:, None, None, :], (batch, 1, tokens, past)),
            np.broadcast_to(causal, (batch, 1, tokens, tokens)),
        ],
        axis=-1,
    ).astype(np.float32)
