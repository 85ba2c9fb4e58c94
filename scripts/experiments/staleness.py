"""What a stale prefix cache does to an edit: error of the read-outs and success, by prefixes and tokens kept.

Usage: python -m scripts.experiments.staleness BUNDLE --data counterfact.json

The published policy keeps the first tokens of each row, subject included, and computes them again when the loss stalls.
A row's tokens from its first read-out on are never kept, so that beyond a row's length nothing changes any more; what
stands before the subject never goes stale. Rows have the bundle's own prefixes, a few words, then longer ones. The
first line of each length is the exact cache. Errors are those over the search's steps, against an uncached forward at
the same delta.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from typing import Any

import click
from matplotlib.figure import Figure
from tqdm import tqdm

from mobiedit.calibration.text import default_text
from mobiedit.runtime import Bundle, EditConfig, PrefixCache
from mobiedit.runtime.configuration import Optimizer, edit_config
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.tokenizer import Tokenizer
from scripts.support.experiment import Experiment, experiment_command, new_figure
from scripts.support.fidelity import Fidelity, watched_search
from scripts.support.figures import row_of
from scripts.support.tables import Cell

TITLE = "Stale prefix cache"
OWN = "own"


@experiment_command(limit=3)
@click.option(
    "--tokens",
    "kept",
    type=click.IntRange(0),
    multiple=True,
    default=(0, 10, 50),
    help="Tokens of each row that are kept; may be given more than once.",
)
@click.option(
    "--prefix-tokens",
    "lengths",
    type=click.IntRange(1),
    multiple=True,
    default=(10, 50),
    help="Tokens of the longer prefixes; may be given more than once.",
)
def main(kept: tuple[int, ...], lengths: tuple[int, ...], **given: Any) -> None:  # noqa: ANN401 - click's options
    """Edit records of BUNDLE with stale caches of several lengths, behind prefixes of several lengths."""
    experiment = Experiment(**given)
    bundle = experiment.open()
    rows: list[dict[str, Cell]] = []
    for prefix_tokens, behind in _behind_prefixes(bundle, lengths):
        rows += _rows(experiment, behind, prefix_tokens, kept)
        experiment.write("staleness", TITLE, bundle, rows, _plot(rows))  # the longest prefixes take most of the time


def long_prefixes(tokenizer: Tokenizer, tokens: int, rows: int) -> tuple[str, ...]:
    """Return ``rows`` row prefixes: the first leaves its prompt bare, as ROME does, the others have plain text.

    Raises
    ------
    RequestError
        When the project's text is too short for them.
    """
    ids = tokenizer.encode(" ".join(line for line in default_text() if "{" not in line)).ids
    if (rows - 1) * tokens > len(ids):
        most = len(ids) // (rows - 1)
        raise RequestError(f"there is no text for {rows - 1} prefixes of {tokens} tokens: ask for {most} at most")
    cuts = (tokenizer.decode(ids[row * tokens : (row + 1) * tokens]).strip() for row in range(rows - 1))
    return ("{}", *(f"{cut} {{}}" for cut in cuts))


def _behind_prefixes(bundle: Bundle, lengths: tuple[int, ...]) -> Iterator[tuple[str, Bundle]]:
    """Yield the bundle with its own prefixes, then with longer ones: copies, on the sessions that it has by then."""
    rows = len(bundle.manifest.row_prefixes)
    longer = [(tokens, long_prefixes(bundle.tokenizer, tokens, rows)) for tokens in lengths]
    yield OWN, bundle
    for tokens, prefixes in longer:
        lengthened = copy(bundle)
        lengthened.manifest = replace(bundle.manifest, row_prefixes=prefixes)
        yield str(tokens), lengthened


def _rows(experiment: Experiment, bundle: Bundle, prefix_tokens: str, kept: tuple[int, ...]) -> list[dict[str, Cell]]:
    exact = edit_config(Optimizer.ZO, {}, experiment.seed)
    variants: dict[str, EditConfig] = {"exact": replace(exact, prefix_cache=PrefixCache.EXACT)}
    for tokens in kept:
        variants[str(tokens)] = replace(exact, prefix_cache=PrefixCache.STALE, stale_tokens=tokens)
    measured = {name: [] for name in variants}
    fidelity: dict[str, list[Fidelity]] = {name: [] for name in variants}
    for record in tqdm(experiment.records(), desc=f"prefix tokens: {prefix_tokens}", unit="record"):
        for name, config in variants.items():
            search, seen = watched_search(bundle, record.request, config)
            measured[name].append(experiment.measure(bundle, record, config, search))
            fidelity[name] += seen
    return [_row(prefix_tokens, name, row_of(measured[name]), fidelity[name]) for name in variants]


def _row(prefix_tokens: str, kept: str, figures: dict[str, Cell], seen: list[Fidelity]) -> dict[str, Cell]:
    del figures["wall_s"]  # the uncached forwards are in it
    return {
        "prefix_tokens": prefix_tokens,
        "tokens_kept": kept,
        **figures,
        "mean_error": sum(f.error for f in seen) / len(seen) if seen else None,
        "largest_error": max((f.error for f in seen), default=None),
        "smallest_cosine": min((f.cosine for f in seen), default=None),
    }


def _plot(rows: list[dict[str, Any]]) -> Figure:
    figure, axes = new_figure(TITLE, 2)
    for prefix_tokens in dict.fromkeys(row["prefix_tokens"] for row in rows):
        part = [row for row in rows if row["prefix_tokens"] == prefix_tokens]
        names = [row["tokens_kept"] for row in part]
        for axis, column in zip(axes, ("mean_error", "probability"), strict=True):
            axis.plot(names, [row[column] for row in part], "o-", label=f"prefix tokens: {prefix_tokens}")
    axes[0].set(xlabel="tokens kept", ylabel="relative error of the read-outs, mean")
    axes[1].set(xlabel="tokens kept", ylabel="probability of the target", ylim=(-0.05, 1.05))
    for axis in axes:
        axis.legend()
    return figure


if __name__ == "__main__":
    main()
