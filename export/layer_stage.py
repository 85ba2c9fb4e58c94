"""The export's stages that choose the edit layer, and collect and write its key statistics."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobiedit.calibration.compact_statistics import affordable_rank, compact_statistics
from mobiedit.calibration.facts import probe_requests
from mobiedit.calibration.key_statistics import KeyStatistics, collect_key_statistics
from mobiedit.calibration.layer_choice import LayerChoice, candidate_layers, choose_layer
from mobiedit.calibration.layer_trial import SearchConfig
from mobiedit.calibration.probe_rows import probe_fact
from mobiedit.runtime.bundle_writer import save_tensors
from mobiedit.runtime.tokenizer import Tokenizer

from .checkpoint import Checkpoint
from .configuration import ExportConfig
from .progress import Stages

_FACTS, _ROWS, _SEED = 16, 3, 0  # _ROWS: the bare prompt and two prefixed ones


@dataclass(frozen=True)
class MeasuredLayer:
    """The edit layer, its key statistics, and what the manifest says of the choice."""

    index: int
    statistics: KeyStatistics
    evidence: dict[str, Any]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know."""
        keys, wanted = self.statistics.keys, self.statistics.wanted
        if keys >= wanted:
            return ()
        return (
            f"key statistics: the calibration text has {keys} tokens, {wanted} were asked for; "
            "give more --calibration-text for a better locality",
        )


def measure_layer(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    sink: int,
    lines: Sequence[str],
    prefixes: Sequence[str],
    config: ExportConfig,
    stages: Stages,
) -> MeasuredLayer:
    """Take the layer that the user asked for, or try a few candidates and take the best.

    Parameters
    ----------
    lines
        Calibration text.
    prefixes
        The bundle's row prefixes.
    """
    model, shape, multiplier = checkpoint.model, checkpoint.shape, config.dynamic_multiplier
    candidates = candidate_layers(shape.n_layers) if config.layer is None else (config.layer,)
    with stages.stage("collect key statistics", round(multiplier * shape.mlp_width)) as advance:
        statistics = collect_key_statistics(model, checkpoint.tokenizer, candidates, sink, lines, multiplier, advance)
    if config.layer is not None:
        return MeasuredLayer(config.layer, statistics[config.layer], {"chosen": config.layer, "asked_for": True})
    choice = LayerChoice(candidates[0])
    if len(candidates) > 1:
        requests = probe_requests(_FACTS, _SEED, config.facts)
        facts = [probe_fact(request, prefixes[:_ROWS], tokenizer) for request in requests]
        inverses = {layer: each.inverse_covariance for layer, each in statistics.items()}
        search = SearchConfig()
        with stages.stage("choose the edit layer", len(candidates) * search.steps) as advance:
            choice = choose_layer(model, sink, inverses, facts, search, advance)
    return MeasuredLayer(choice.layer, statistics[choice.layer], choice.to_dict())


def write_key_statistics(path: Path, statistics: KeyStatistics, config: ExportConfig, stages: Stages) -> dict[str, Any]:
    """Write the compact form of the edit layer's statistics, and return what the manifest says of them."""
    began = time.perf_counter()
    rank = affordable_rank(len(statistics.inverse_covariance), config.key_statistics_bytes)
    with stages.stage("compact key statistics"):
        save_tensors(path, compact_statistics(statistics.inverse_covariance, rank).tensors)
    size, seconds = path.stat().st_size, round(time.perf_counter() - began, 1)
    return {"keys": statistics.keys, "wanted": statistics.wanted, "rank": rank, "bytes": size, "seconds": seconds}
