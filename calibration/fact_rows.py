"""Facts run up to the edit layer, with what is behind it left to torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mobiedit.runtime.decoder import Decoder, Slots
from mobiedit.runtime.prompt_rows import padded
from mobiedit.runtime.window import Window

from .differentiable_rows import DifferentiableRows
from .facts import FactRow

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class FactRows:
    """A batch of B facts, each a row of its own, with M read-outs in all.

    Attributes
    ----------
    differentiable
        The rows behind the edit layer.
    value_norms
        [B] norm of the value at each subject.
    context
        [B, D] residual stream behind the edit layer at each subject.
    targets
        [M] the token that each read-out shall yield.
    positions
        [M] its position in the row's target.
    lengths
        [B] tokens of each target.
    """

    differentiable: DifferentiableRows
    value_norms: Tensor
    context: Tensor
    targets: Tensor
    positions: Tensor
    lengths: Tensor

    @property
    def owners(self) -> Tensor:
        """[M] the row of each read-out."""
        return self.differentiable.rows

    def means(self, figures: Tensor) -> Tensor:
        """Return [B] the mean of each row's figures, of which there is one for each read-out, [M]."""
        return torch.zeros(len(self.lengths)).index_add(0, self.owners, figures) / self.lengths


@dataclass(frozen=True)
class FactRunner:
    """Runs facts through the graphs up to the edit layer, and keeps K and V of what stands in front of a subject.

    Attributes
    ----------
    decoder
        The FP32 graphs.
    suffix
        The layers behind the edit layer, in torch.
    inverse_covariance
        [F, F] of the edit layer's keys.
    slots
        Empty ones.
    """

    decoder: Decoder
    suffix: nn.Module
    inverse_covariance: Floats
    slots: Slots

    def run(self, facts: Sequence[FactRow]) -> FactRows:
        """Return the batch, delta scaled as a rank-one update would scale it."""
        decoder, batch = self.decoder, np.arange(len(facts))
        texts = [fact.prompt + fact.target[:-1] for fact in facts]
        ids = padded(texts)
        subjects = np.array([fact.subject for fact in facts])
        prefix_sink, suffix_sink = decoder.sink_caches(len(facts))
        residual, _ = decoder.run_prefix(ids, prefix_sink)
        edited = decoder.run_edit(residual, self.slots)
        _, new = decoder.run_suffix(edited.hidden, suffix_sink)

        solved = edited.keys[batch, subjects] @ self.inverse_covariance
        directions = solved / (solved * edited.keys[batch, subjects]).sum(axis=-1, keepdims=True)
        window = Window.open(
            subjects,
            np.array([len(text) for text in texts]),
            edited.hidden,
            np.einsum("btf,bf->bt", edited.keys, directions),
            suffix_sink,
            new,
        )
        readouts = [
            range(len(fact.prompt) - 1 - fact.subject, len(fact.prompt) - 1 - fact.subject + len(fact.target))
            for fact in facts
        ]
        rows = DifferentiableRows.prepare(self.suffix, decoder, window.hidden, window.scales, window.cache, readouts)
        return FactRows(
            rows,
            torch.from_numpy(np.linalg.norm(edited.values[batch, subjects], axis=-1)),
            torch.from_numpy(edited.hidden[batch, subjects]),
            torch.tensor([token for fact in facts for token in fact.target]),
            torch.tensor([position for fact in facts for position in range(len(fact.target))]),
            torch.tensor([len(fact.target) for fact in facts]),
        )
