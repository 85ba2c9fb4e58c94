"""The search of MobiEdit's public code on the bundle's own execution provider; `support/published.py` says what it is.

Usage: python -m scripts.published_baseline BUNDLE --data counterfact.json --limit 2 --steps 100 --json OUT

A full run is 600 steps of 15 forwards over whole rows through all layers: minutes a record. ``--stop-at-success`` ends
it when every row yields the target greedily, those of shortened prompts too, which gn does not wait for. The file is
that of ``mobiedit bench``.
"""

from __future__ import annotations

import statistics
from typing import Any

import click

from mobiedit.runtime import EditConfig, Method, PrefixCache
from mobiedit.runtime.cli_support import CONTEXT_SETTINGS, ErrorCommand
from mobiedit.runtime.configuration import Optimizer
from mobiedit.runtime.evaluation.commands import bench_and_print
from scripts.support.bench_options import BenchOptions, bench_parameters
from scripts.support.published import PUBLISHED_LOSS, PublishedConfig, published_search

_DEFAULTS = PublishedConfig()


@click.command(cls=ErrorCommand, context_settings=CONTEXT_SETTINGS, params=bench_parameters("method"))
@click.option("--steps", type=click.IntRange(1, _DEFAULTS.steps), default=_DEFAULTS.steps, help="Steps that are run.")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=_DEFAULTS.learning_rate)
@click.option("--mu", type=click.FloatRange(0, min_open=True), default=_DEFAULTS.mu)
@click.option("--relative", is_flag=True, help="Take both as relative to the norm of the value.")
@click.option(
    "--prefix-cache",
    type=click.Choice([PrefixCache.OFF.value, PrefixCache.STALE.value]),
    default=PrefixCache.OFF.value,
    help="off: whole forwards. stale: the first 10 tokens of each row are kept, as published.",
)
@click.option("--look-every", type=click.IntRange(1), default=_DEFAULTS.look_every, help="Steps between two looks.")
@click.option("--stop-at-success", is_flag=True, help="Stop at the look that finds the edit done; else run on.")
@click.option(
    "--stop-probability",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=_DEFAULTS.stop_probability,
    help="Mean probability of the target at which it is done.",
)
def main(prefix_cache: str, **given: Any) -> None:  # noqa: ANN401 - click gives options of any type
    """Measure the published search's edits of BUNDLE on records."""
    own = {name: given.pop(name) for name in PublishedConfig.__dataclass_fields__.keys() & given.keys() - {"seed"}}
    options = BenchOptions(**given, method=Method.ROME)
    config = PublishedConfig(**own, seed=options.seed)
    # The search takes the zeroth-order one's place: the other has no use for a stale cache.
    edit = EditConfig(Optimizer.ZO, loss=PUBLISHED_LOSS, prefix_cache=PrefixCache(prefix_cache))
    document = bench_and_print(
        options.open(),
        options.read(),
        options.config(edit),
        options.out,
        resume=options.resume,
        foreign=published_search(config),
    )
    _print_more([record for record in document["records"] if record["cost"]])


def _print_more(records: list[dict[str, Any]]) -> None:
    """Print the way of the loss, and what a forward costs; the whole edit with its check is in the latter."""
    click.echo(f"{'forwards':>9} {'loss':>9} {'target probability':>20}   (medians)")
    curves = [record["looks"] for record in records]
    for i in range(max(map(len, curves), default=0)):
        seen = [curve[i] for curve in curves if i < len(curve)]
        forwards, loss, probability = (statistics.median(values) for values in zip(*seen, strict=True))
        click.echo(f"{forwards:>9,.0f} {loss:>9.4f} {probability:>20.4f}   {len(seen)} edits")
    total = sum(record["cost"]["forwards"] for record in records)
    if total:
        wall, work = (sum(record["cost"][name] for record in records) / total for name in ("wall_s", "token_layers"))
        click.echo(f"a forward: {1000 * wall:.1f} ms, {work:,.0f} token-layers")


if __name__ == "__main__":
    main()
