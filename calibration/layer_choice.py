"""Which layer holds the edit: a few facts are taught at a few layers, by backpropagation, and looked at.

Where facts are held differs from model to model, so that depth alone is a guess. A later layer leaves fewer layers to
run in every step of the device's search; a layer that is too late no longer spreads the fact to other wordings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from .edited_rows import read_rows
from .half_precision import bfloat16_pays
from .layer_trial import LayerEvidence, LayerTrial, SearchConfig
from .probe_rows import ProbeFact

DEPTHS = (0.35, 0.43, 0.5)
"""Depths of the candidates as fractions of the layers; the first is the guess where nothing can be measured."""

TOLERANCE = 0.03
"""What of the score a cheaper suffix is worth."""


@dataclass(frozen=True)
class LayerChoice:
    """The chosen layer and what it was chosen by."""

    layer: int
    candidates: tuple[LayerEvidence, ...] = ()
    facts: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the choice as the manifest states it."""
        candidates = [{**asdict(each), "score": each.score} for each in self.candidates]
        rounded = [{name: round(number, 4) for name, number in each.items()} for each in candidates]
        return {
            "chosen": self.layer,
            "candidates": rounded,
            "facts": self.facts,
            "seconds": round(self.seconds, 1),
        }


def candidate_layers(n_layers: int) -> tuple[int, ...]:
    """Return the layers that are tried, the earliest first; one more is always behind them."""
    return tuple(sorted({min(round(depth * n_layers), n_layers - 2) for depth in DEPTHS}))


def choose_layer(
    model: nn.Module,
    sink: int,
    inverse_covariances: Mapping[int, NDArray[np.float32]],
    facts: Sequence[ProbeFact],
    config: SearchConfig,
    advance: Callable[[int], None] = lambda steps: None,
) -> LayerChoice:
    """Teach each fact at each candidate layer, and choose by `best_layer`.

    Parameters
    ----------
    sink
        The token in front of every text.
    inverse_covariances
        [F, F] of the keys of each candidate.
    advance
        Told the number of steps of each candidate's search, ``config.steps``.
    """
    began = time.perf_counter()
    half = bfloat16_pays()
    read = read_rows(model, sink, [row.ids for fact in facts for row in fact.rows], list(inverse_covariances))
    evidence = []
    for layer, inverse in inverse_covariances.items():
        trial = LayerTrial(read, facts, layer, inverse)
        evidence.append(trial.evidence(trial.find_deltas(config, half=half)))
        advance(config.steps)
    return LayerChoice(best_layer(evidence), tuple(evidence), len(facts), time.perf_counter() - began)


def best_layer(evidence: Sequence[LayerEvidence]) -> int:
    """Return the latest layer whose score is within `TOLERANCE` of the best.

    Every step of every edit on the device runs the layers behind it, so that a cheaper suffix is worth a twentieth of
    the score, which is also about as finely as a few facts can tell layers apart.
    """
    best = max(each.score for each in evidence)
    return max(each.layer for each in evidence if each.score >= best - TOLERANCE - 1e-9)
