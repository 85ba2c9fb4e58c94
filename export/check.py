"""Compare written graphs with the source model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mobiedit.runtime.decoder import Decoder, Slots
from mobiedit.runtime.errors import ExportError
from mobiedit.runtime.prompt_rows import padded
from mobiedit.runtime.readout_loss import log_softmax

from .configuration import Precision

FP32_TOLERANCE = 1e-3
"""Largest difference of a logit: FP32 sums in another order give about 1e-4 on logits of size 30."""

_BATCH = 8  # texts read at a time: weights in half precision are widened anew for each


@dataclass(frozen=True)
class Limits:
    """The smallest mean cosine of logits, and the largest change of the mean NLL (nats a token)."""

    min_cosine: float
    max_nll_change: float


_8_BITS = Limits(0.99, 0.05)
LIMITS = {
    Precision.W8A16: _8_BITS,
    Precision.W8A8: Limits(0.50, 2.0),
    Precision.MIXED: Limits(0.95, 0.05),
    Precision.W8: _8_BITS,
    Precision.W4: Limits(0.90, 0.10),
    Precision.FP16: Limits(0.999, 0.01),
}
"""Limits for the graphs of a precision. SmolLM2-135M stays ten times within them, but for what follows; what
exceeds them answers visibly worse, or for FP16 has left its range. ``w8a8`` loses much (docs/benchmarks.md) and is
written all the same, with a note: its limits refuse what is no model any more. ``mixed`` may lose its budget as well.
At 4 bits the NLL decides: a random model lost 0.08 of the cosine and no NLL."""


@dataclass(frozen=True)
class Comparison:
    """Graphs against the source model on held-out text.

    Attributes
    ----------
    max_abs_logit_difference
        Over all tokens and the whole vocabulary.
    mean_cosine
        Of the logit vectors, mean over tokens.
    nll, nll_change
        Mean NLL of the text under the source model (nats a token), and what the graphs add to it.
    tokens
        Tokens compared.
    """

    max_abs_logit_difference: float
    mean_cosine: float
    nll: float
    nll_change: float
    tokens: int

    def to_dict(self) -> dict[str, float]:
        """Return the fields as plain numbers."""
        return asdict(self)


class Reference:
    """Texts, and the logits [T, V] that the source model gave on them, kept in files.

    Parameters
    ----------
    folder
        Where the logits lie, and go with it.
    """

    def __init__(self, folder: Path, texts: Sequence[Sequence[int]]) -> None:
        self.texts = texts
        self._folder = folder

    def logits(self, index: int) -> NDArray[np.float32]:
        """Return what a text's tokens led to, from a memory map."""
        found: NDArray[np.float32] = np.load(self._file(index), mmap_mode="r")
        return found

    @torch.no_grad()
    def read(self, model: nn.Module, sink: int, advance: Callable[[int], None] = lambda texts: None) -> Self:
        """Let the source model read the texts behind the sink token."""
        for start in range(0, len(self.texts), _BATCH):
            batch = self.texts[start : start + _BATCH]
            final = model.model(torch.from_numpy(padded([[sink, *ids] for ids in batch])), use_cache=False)[0]
            for index, (ids, hidden) in enumerate(zip(batch, final, strict=True), start):
                np.save(self._file(index), model.lm_head(hidden[1 : 1 + len(ids)]).numpy())
            advance(len(batch))
        return self

    def _file(self, index: int) -> Path:
        return self._folder / f"logits.{index}.npy"


def compare(
    decoder: Decoder,
    slots: Slots,
    reference: Reference,
    advance: Callable[[int], None] = lambda texts: None,
) -> Comparison:
    """Run the reference's texts through a decoder, one graph after another: each is needed for a while only."""
    prefix_sink, suffix_sink = decoder.sink_caches(1)
    residuals = [decoder.run_prefix(np.array([ids], np.int64), prefix_sink)[0] for ids in reference.texts]
    edited = [decoder.run_edit(residual, slots).hidden for residual in residuals]
    finals = [decoder.run_suffix(hidden, suffix_sink)[0] for hidden in edited]
    largest, cosines, before, after = 0.0, [], [], []
    for index, (ids, final) in enumerate(zip(reference.texts, finals, strict=True)):
        wanted, logits = reference.logits(index), decoder.run_head(final[0])
        largest = max(largest, float(np.abs(logits - wanted).max()))
        norms = np.linalg.norm(logits, axis=-1) * np.linalg.norm(wanted, axis=-1)
        cosines.append((logits * wanted).sum(axis=-1) / norms)
        following = np.array(ids[1:])[:, None]
        before.append(-np.take_along_axis(log_softmax(wanted[:-1]), following, axis=-1))
        after.append(-np.take_along_axis(log_softmax(logits[:-1]), following, axis=-1))
        advance(1)
    nll = float(np.concatenate(before).mean())
    change = float(np.concatenate(after).mean()) - nll
    tokens = sum(map(len, reference.texts))
    return Comparison(largest, float(np.concatenate(cosines).mean()), nll, change, tokens)


def require_exact(comparison: Comparison) -> None:
    """Refuse FP32 graphs that are not the source model."""
    if not comparison.max_abs_logit_difference <= FP32_TOLERANCE:
        raise ExportError(
            f"the FP32 graphs differ from the source model by {comparison.max_abs_logit_difference:.2g} in a logit "
            f"(limit {FP32_TOLERANCE:g}): the checkpoint is not what its configuration says, or this is a bug; "
            "nothing was written"
        )


def require_close(comparison: Comparison, precision: Precision, budget: float = 0.0) -> None:
    """Refuse graphs of a lower precision that have lost the model.

    Parameters
    ----------
    budget
        What the 8-bit activations were allowed to add to the NLL: it is added to the limit.
    """
    limits = LIMITS[precision]
    limits = Limits(limits.min_cosine, limits.max_nll_change + budget)
    if not (comparison.mean_cosine >= limits.min_cosine and comparison.nll_change <= limits.max_nll_change):
        remedy = "use --ranges minmax, more --samples, or " if precision is Precision.W8A16 else "choose "
        raise ExportError(
            f"the {precision} graphs are off (cosine {comparison.mean_cosine:.4f}, "
            f"NLL change {comparison.nll_change:+.4f}; "
            f"limits {limits.min_cosine} and {limits.max_nll_change:+}): {remedy}a higher --precision"
        )


def accuracy_notes(comparison: Comparison, precision: Precision) -> tuple[str, ...]:
    """Return what the user should know of graphs that passed, but of a precision whose limits are wide."""
    if precision is not Precision.W8A8 or comparison.nll_change <= _8_BITS.max_nll_change:
        return ()
    return (
        f"the w8a8 graphs add {comparison.nll_change:+.2f} nats a token: answers are visibly worse; "
        "--precision mixed keeps 16 bits where they are needed",
    )
