"""What early stopping and the prefix cache each save, and what the stale cache costs in fidelity.

Usage: python -m scripts.experiments.ablation BUNDLE --data counterfact.json

Every edit is searched for with early stopping on and off, and with the cache exact, stale as published, and off. Then
the first record's search is run once more without early stopping under each cache, and in each of its steps the
suffix's read-outs are compared with those of an uncached forward at the same delta.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure
from tqdm import tqdm

from mobiedit.runtime import EditConfig, PrefixCache
from mobiedit.runtime.configuration import Optimizer, edit_config
from scripts.support.experiment import Experiment, experiment_command, new_figure, optimizer_option
from scripts.support.fidelity import Fidelity, watched_search
from scripts.support.figures import row_of
from scripts.support.tables import Cell

TITLE = "Early stopping and prefix cache"
NEVER = math.nextafter(1.0, 0.0)  # a probability that stops no search before its last step


@experiment_command(limit=2)
@optimizer_option(Optimizer.ZO, "; gn has no stale cache to look at")
def main(optimizer: str, **given: Any) -> None:  # noqa: ANN401 - click's options
    """Edit records of BUNDLE with parts switched off."""
    experiment = Experiment(**given)
    bundle, records = experiment.open(), experiment.records()
    # The other search keeps nothing that could be stale.
    caches = list(PrefixCache) if optimizer == Optimizer.ZO else [PrefixCache.EXACT, PrefixCache.OFF]
    variants = {
        (stopping, cache): _config(optimizer, experiment.seed, cache, stopping)
        for stopping in (True, False)
        for cache in caches
    }
    measured = {key: [] for key in variants}
    for record in tqdm(records, unit="record"):
        for key, config in variants.items():
            measured[key].append(experiment.measure(bundle, record, config))
    watched: dict[PrefixCache, list[Fidelity]] = {}
    for cache in caches:
        search, watched[cache] = watched_search(bundle, records[0].request, variants[False, cache])
        bundle.trial(records[0].request, variants[False, cache], search=search.search)
    rows: list[dict[str, Cell]] = [
        {"early_stopping": stopping, "prefix_cache": cache.value, **row_of(edits), **_fidelity(watched[cache])}
        for (stopping, cache), edits in measured.items()
    ]
    experiment.write("ablation", TITLE, bundle, rows, _plot(rows, watched))


def _config(optimizer: str, seed: int, cache: PrefixCache, stopping: bool) -> EditConfig:
    given = {} if stopping else {"stop_probability": NEVER}
    return replace(edit_config(Optimizer(optimizer), given, seed), prefix_cache=cache)


def _fidelity(seen: list[Fidelity]) -> dict[str, Cell]:
    """Return the worst of a search's steps."""
    return {"smallest_cosine": min(f.cosine for f in seen), "largest_error": max(f.error for f in seen)}


def _plot(rows: list[dict[str, Any]], watched: dict[PrefixCache, list[Fidelity]]) -> Figure:
    figure, (seconds, work, cosines) = new_figure(TITLE, 3)
    labels = [f"{row['prefix_cache']}{'' if row['early_stopping'] else ', no stop'}" for row in rows]
    for axis, column, name in ((seconds, "wall_s", "seconds"), (work, "token_layers", "token-layers")):
        axis.barh(labels, [row[column] or 0 for row in rows])
        axis.invert_yaxis()
        axis.set(xlabel=f"{name} an edit, median")
    for cache, seen in watched.items():
        cosines.plot([f.cosine for f in seen], label=cache.value)
    cosines.set(xlabel="batch of forwards", ylabel="cosine of the read-outs with uncached ones", title="first record")
    cosines.legend()
    return figure


if __name__ == "__main__":
    main()
