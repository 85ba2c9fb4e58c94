"""The figures of several edits in one row, and what goes through a run of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from mobiedit.runtime.evaluation import MeasuredRecord
from mobiedit.runtime.evaluation.summary import COSTS, summarise, summarise_further

from .tables import Cell

SUCCESS = ("efficacy", "exact_match", "paraphrase", "neighbourhood")
COUNTED = tuple(name for name in COSTS if name != "peak_rss_bytes")
"""The costs that an edit has of its own: the peak of memory is the process's."""


def row_of(records: Sequence[MeasuredRecord]) -> dict[str, Cell]:
    """Return the mean success of edits, and medians: of the least loss that a search saw, and of the costs."""
    summary, further = summarise(records), summarise_further(records)
    scores = {name: summary[name]["post"] if summary[name] else None for name in SUCCESS}
    losses = [min(loss for _, loss, _ in record.looks) for record in records if record.looks]
    costs = {name: summary[name]["median"] if summary[name] else None for name in COUNTED}
    probability = further["target_probability"]
    return {
        **scores,
        "probability": probability["post"] if probability else None,
        "loss": statistics.median(losses) if losses else None,
        **costs,
    }
