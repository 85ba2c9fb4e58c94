"""The export's stage that fits the lens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mobiedit.calibration.fact_rows import FactRunner
from mobiedit.calibration.facts import FactMix, FactSampler, facts_of_file, own_relations
from mobiedit.calibration.lens import FittedLens, LensConfig, fit_lens
from mobiedit.calibration.widened import WidenedLinear
from mobiedit.runtime.decoder import Decoder, Slots
from mobiedit.runtime.tokenizer import Tokenizer

from .checkpoint import Checkpoint
from .configuration import ExportConfig
from .segment import DecoderSegment


def fit_export_lens(
    checkpoint: Checkpoint,
    decoder: Decoder,
    tokenizer: Tokenizer,
    layer: int,
    inverse_covariance: NDArray[np.float32],
    lines: Sequence[str],
    prefixes: Sequence[str],
    config: ExportConfig,
    advance: Callable[[int], None] = lambda rows: None,
    mix: FactMix | None = None,
) -> FittedLens:
    """Fit the lens of an edit layer on the user's facts, or on the project's relations and calibration text.

    Parameters
    ----------
    decoder
        The FP32 graphs.
    inverse_covariance
        [F, F] of the layer's keys.
    mix
        Shares of the kinds of facts; None is the default.
    """
    model, shape = checkpoint.model, checkpoint.shape
    model.requires_grad_(False)
    suffix = DecoderSegment(
        model.model.layers,
        layer + 1,
        shape.n_layers,
        shape,
        final_norm=model.model.norm,
        recompute=isinstance(model.lm_head, WidenedLinear),  # a model that is stored in half is one that is large
    )
    source = facts_of_file(config.facts) if config.facts else own_relations()
    sampler = FactSampler(tokenizer, source, lines, prefixes, mix or FactMix(), seed=0)
    runner = FactRunner(decoder, suffix, inverse_covariance, Slots.empty(config.slots, shape))
    return fit_lens(runner, model.lm_head.weight.detach(), sampler, LensConfig(rows=config.lens_rows), advance)
