"""Rows behind the edit layer in torch, so that the host can backpropagate to delta. No device runs this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mobiedit.runtime.decoder import Decoder, LayerCache


@dataclass(frozen=True)
class DifferentiableRows:
    """Prepared rows, and their read-outs as a function of one delta a row.

    Attributes
    ----------
    suffix
        The layers behind the edit layer: (hidden, cos, sin, mask, past K and V) to (normalised hidden, new K and V).
    hidden
        [B, T, D] residual stream behind the edit layer, without delta.
    scales
        [B, T] what of delta each token receives.
    inputs
        What the suffix takes beside ``hidden``.
    rows, columns
        [M] where the read-outs stand.
    """

    suffix: nn.Module
    hidden: Tensor
    scales: Tensor
    inputs: tuple[Tensor, ...]
    rows: Tensor
    columns: Tensor

    @staticmethod
    def prepare(
        suffix: nn.Module,
        decoder: Decoder,
        hidden: NDArray[np.float32],
        scales: NDArray[np.float32],
        cache: LayerCache,
        readouts: Sequence[Sequence[int]],
    ) -> DifferentiableRows:
        """Take over rows that the runtime's decoder ran up to the edit layer.

        Parameters
        ----------
        cache
            K and V of the tokens in front, at least the sink token.
        readouts
            For each row, the tokens whose hidden states are read.
        """
        inputs = decoder.segment_inputs(cache, hidden.shape[1])
        rows = [b for b, tokens in enumerate(readouts) for _ in tokens]
        columns = [token for tokens in readouts for token in tokens]
        return DifferentiableRows(
            suffix,
            torch.from_numpy(hidden),
            torch.from_numpy(np.asarray(scales, np.float32)),
            tuple(torch.from_numpy(np.ascontiguousarray(part)) for part in inputs),
            torch.tensor(rows),
            torch.tensor(columns),
        )

    def readouts(self, deltas: Tensor) -> Tensor:
        """Return the normalised hidden states [M, D] at the read-outs for deltas [B, D], differentiable in them."""
        final: Tensor = self.suffix(self.hidden + self.scales[:, :, None] * deltas[:, None, :], *self.inputs)[0]
        return final[self.rows, self.columns]
