"""What a stale prefix cache does to an edit: error of the read-outs and success, by the number of tokens kept.

Usage: python -m scripts.experiments.staleness BUNDLE --data counterfact.json

The published policy keeps the first tokens of each row, subject included, and computes them again when the loss stalls.
A row's tokens from its first read-out on are never kept, so that beyond a row's length nothing changes any more. The
first line of the table is the exact cache. Errors are those over the search's steps, against an uncached forward at
the same delta.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click
from matplotlib.figure import Figure
from tqdm import tqdm

from mobiedit.runtime import EditConfig, PrefixCache
from mobiedit.runtime.configuration import Optimizer, edit_config
from scripts.support.experiment import Experiment, experiment_command, new_figure
from scripts.support.fidelity import Fidelity, watched_search
from scripts.support.figures import row_of
from scripts.support.tables import Cell

TITLE = "Stale prefix cache"


@experiment_command(limit=3)
@click.option(
    "--tokens",
    "kept",
    type=click.IntRange(0),
    multiple=True,
    default=(0, 5, 10, 20, 30, 40, 50),
    help="Tokens of each row that are kept; may be given more than once.",
)
def main(kept: tuple[int, ...], **given: Any) -> None:  # noqa: ANN401 - click's options
    """Edit records of BUNDLE with stale caches of several lengths."""
    experiment = Experiment(**given)
    bundle = experiment.open()
    exact = edit_config(Optimizer.ZO, {}, experiment.seed)
    variants: dict[str, EditConfig] = {"exact": replace(exact, prefix_cache=PrefixCache.EXACT)}
    for tokens in kept:
        variants[str(tokens)] = replace(exact, prefix_cache=PrefixCache.STALE, stale_tokens=tokens)
    measured = {name: [] for name in variants}
    fidelity: dict[str, list[Fidelity]] = {name: [] for name in variants}
    for record in tqdm(experiment.records(), unit="record"):
        for name, config in variants.items():
            search, seen = watched_search(bundle, record.request, config)
            measured[name].append(experiment.measure(bundle, record, config, search))
            fidelity[name] += seen
    rows = [_row(name, row_of(measured[name]), fidelity[name]) for name in variants]
    experiment.write("staleness", TITLE, bundle, rows, _plot(rows))


def _row(name: str, figures: dict[str, Cell], seen: list[Fidelity]) -> dict[str, Cell]:
    del figures["wall_s"]  # the uncached forwards are in it
    return {
        "tokens_kept": name,
        **figures,
        "mean_error": sum(f.error for f in seen) / len(seen) if seen else None,
        "largest_error": max((f.error for f in seen), default=None),
        "smallest_cosine": min((f.cosine for f in seen), default=None),
    }


def _plot(rows: list[dict[str, Any]]) -> Figure:
    figure, (errors, success) = new_figure(TITLE, 2)
    names = [row["tokens_kept"] for row in rows]
    for column in ("mean_error", "largest_error"):
        errors.plot(names, [row[column] for row in rows], "o-", label=column.replace("_", " "))
    errors.set(xlabel="tokens kept", ylabel="relative error of the read-outs")
    for column in ("exact_match", "probability"):
        success.plot(names, [row[column] for row in rows], "o-", label=column.replace("_", " "))
    success.set(xlabel="tokens kept", ylim=(-0.05, 1.05))
    for axis in (errors, success):
        axis.legend()
    return figure


if __name__ == "__main__":
    main()
