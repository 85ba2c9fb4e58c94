"""Many measured records in a few figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from .measured import MeasuredRecord

SCORES = (
    "efficacy",
    "exact_match",
    "exact_match_free",
    "paraphrase",
    "neighbourhood",
    "argmax_unchanged",
    "portability",
    "fluency",
)
MEASURES = ("token_accuracy", "target_probability", "inferences_unchanged")
COSTS = ("forwards", "token_layers", "wall_s", "peak_rss_bytes")
_RESAMPLES = 1000


def summarise(records: Sequence[MeasuredRecord]) -> dict[str, Any]:
    """Return the mean of every score before and after with the interval of the latter, and what an edit costs.

    A score that no record has, or a cost without any edit, is None.
    """
    return {name: _score(records, name) for name in SCORES} | {name: _cost(records, name) for name in COSTS}


def summarise_further(records: Sequence[MeasuredRecord]) -> dict[str, Any]:
    """Return measures that are no scores of the literature, the share that would be committed, and the worst tenth."""
    return {
        **{name: _score(records, name) for name in MEASURES},
        "committed": _mean([record.committed for record in records]),
        "refused": sum(record.error is not None for record in records),
        "worst_decile": _worst_decile(records),
    }


def bootstrap_interval(values: Sequence[float], resamples: int = _RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile-bootstrap interval of the mean (Efron and Tibshirani 1993, chapter 13).

    Parameters
    ----------
    values
        One or more.
    resamples
        Samples of the same size, drawn with replacement, whose means are taken.
    """
    data = np.array(values, np.float64)
    rng = np.random.default_rng(seed)
    means = [data[rng.integers(len(data), size=len(data))].mean() for _ in range(resamples)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _score(records: Sequence[MeasuredRecord], name: str) -> dict[str, Any] | None:
    told = [record for record in records if getattr(record.pre, name) is not None]
    if not told:
        return None
    pre = [float(getattr(record.pre, name)) for record in told]
    post = [float(getattr(record.post, name)) for record in told]
    return {"pre": _mean(pre), "post": _mean(post), "ci95": list(bootstrap_interval(post))}


def _cost(records: Sequence[MeasuredRecord], name: str) -> dict[str, float] | None:
    values = [getattr(record.cost, name) for record in records if record.cost]
    return {"median": statistics.median(values), "max": max(values)} if values else None


def _worst_decile(records: Sequence[MeasuredRecord]) -> dict[str, Any] | None:
    ordered = sorted(records, key=lambda record: record.post.target_probability)
    worst = ordered[: math.ceil(len(ordered) / 10)]
    if not worst:
        return None
    return {
        "records": len(worst),
        "target_probability": _mean([record.post.target_probability for record in worst]),
        "exact_match": _mean([record.post.exact_match for record in worst]),
        "forwards": (_cost(worst, "forwards") or {}).get("median"),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
