"""What the same success costs: the optimizers, backpropagation and the published search on the same records.

Usage: python -m scripts.compare_costs BUNDLE --data counterfact.json --limit 5 --published-steps 40 --json OUT

One process edits each record with every method in turn, so that a machine that gets busier meets all of them alike.
The published search takes minutes a record; ``--published-steps`` cuts it short, and a row of its own then holds the
cost of all its 600 steps, extrapolated from the cost of a forward. Its success is that of the steps that were run.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from mobiedit.runtime import Bundle, EditConfig, Method, PrefixCache
from mobiedit.runtime.cli_support import CONTEXT_SETTINGS, ErrorCommand
from mobiedit.runtime.configuration import Optimizer, edit_config
from mobiedit.runtime.costs import Cost
from mobiedit.runtime.evaluation import ForeignSearch, MeasuredRecord
from mobiedit.runtime.evaluation.bench import measure_record
from mobiedit.runtime.files import require_place, write_atomic
from mobiedit.runtime.search import Search, SearchResult, SearchTask
from scripts.support.backprop import ORACLE_LOSS, BackpropConfig, backprop_search
from scripts.support.bench_options import BenchOptions, bench_parameters, model_option
from scripts.support.figures import COUNTED, row_of
from scripts.support.host_model import HostModel, refuse_edits
from scripts.support.published import PUBLISHED_LOSS, PUBLISHED_STEPS, PublishedConfig, published_search
from scripts.support.tables import Cell, text_table

PUBLISHED = "published"


@dataclass
class Clocked:
    """A search, and what each of its runs cost without the rest of the edit."""

    search: Search
    spent: list[Cost] = field(default_factory=list)

    def __call__(self, task: SearchTask) -> SearchResult:
        """Search, and note the cost."""
        meter, start = task.problem.meter, time.perf_counter()
        forwards, token_layers = meter.forwards, meter.token_layers
        found = self.search(task)
        seconds = time.perf_counter() - start
        self.spent.append(Cost(meter.forwards - forwards, meter.token_layers - token_layers, seconds, 0))
        return found


@dataclass(frozen=True)
class Contender:
    """A way to edit: settings, and the search where it is none of the optimizers; what its searches cost."""

    edit: EditConfig
    foreign: ForeignSearch | None = None
    clock: Clocked | None = None


@click.command(
    cls=ErrorCommand, context_settings=CONTEXT_SETTINGS, params=bench_parameters("method", "resume", "fluency_tokens")
)
@model_option
@click.option(
    "--optimizer",
    "optimizers",
    type=click.Choice([each.value for each in Optimizer]),
    multiple=True,
    default=tuple(each.value for each in Optimizer),
    help="May be given more than once.",
)
@click.option(
    "--published-steps",
    type=click.IntRange(1, PUBLISHED_STEPS),
    default=PUBLISHED_STEPS,
    help="Steps of the published search that are run.",
)
@click.option("--published-relative", is_flag=True, help="Its lengths relative to the value's norm.")
@click.option(
    "--stop-probability",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=PublishedConfig.stop_probability,
    help="Mean probability of the target at which forward-only searches are done, each of them.",
)
@click.option("--stop-at-success", is_flag=True, help="End the published search when every row yields the target.")
def main(
    model: str,
    optimizers: tuple[str, ...],
    published_steps: int,
    published_relative: bool,
    stop_probability: float,
    stop_at_success: bool,
    **given: Any,  # noqa: ANN401 - click gives options of any type
) -> None:
    """Edit records of BUNDLE with every method, and print costs and their ratios."""
    options = BenchOptions(**given, method=EditConfig().method, resume=False, fluency_tokens=0)
    require_place(options.out)
    if options.threads:
        torch.set_num_threads(options.threads)
    bundle, data = options.open(), options.read()
    refuse_edits(bundle, options.bundle)
    published = PublishedConfig(
        steps=published_steps,
        relative=published_relative,
        stop_at_success=stop_at_success,
        stop_probability=stop_probability,
        seed=options.seed,
    )
    methods = _methods(HostModel.load(bundle, model), optimizers, published)
    records = data.part(options.skip, options.limit)
    measured: dict[str, list[MeasuredRecord]] = {name: [] for name in methods}
    for record in tqdm(records, unit="record"):
        for name, method in methods.items():
            measured[name].append(measure_record(bundle, record, method.edit, 0, (options.seed,), method.foreign))
        rows = [_row(name, measured[name]) for name in methods]
        whole = _extrapolated(measured[PUBLISHED], methods[PUBLISHED].clock, published.whole_forwards)
        if whole:
            rows.append({"method": f"published, {PUBLISHED_STEPS} steps, extrapolated", **_costs(whole)})
        ratios = _ratios(rows, optimizers)
        # After every record: it takes minutes, and a run may be ended at any time.
        _write(options, bundle, data.sha256, methods, measured, rows, ratios)
    _print(rows, ratios, published)


def _methods(host: HostModel, optimizers: Sequence[str], config: PublishedConfig) -> dict[str, Contender]:
    given = {"stop_probability": config.stop_probability}
    own = {name: Contender(edit_config(Optimizer(name), given, config.seed)) for name in optimizers}
    whole = EditConfig(prefix_cache=PrefixCache.OFF)
    oracle = replace(whole, loss=ORACLE_LOSS)
    as_published = replace(whole, method=Method.ROME, loss=PUBLISHED_LOSS)
    search = published_search(config)
    clock = Clocked(search.search)
    return {
        **own,
        "backprop": Contender(oracle, backprop_search(host, BackpropConfig(), oracle)),
        PUBLISHED: Contender(as_published, replace(search, search=clock), clock),
    }


def _row(name: str, records: Sequence[MeasuredRecord]) -> dict[str, Cell]:
    return {"method": name, **row_of(records)}


def _costs(costs: Sequence[Cost]) -> dict[str, Cell]:
    return {name: statistics.median(getattr(cost, name) for cost in costs) for name in COUNTED}


def _extrapolated(records: Sequence[MeasuredRecord], clock: Clocked | None, whole_forwards: int) -> list[Cost]:
    """Return what the published edits would have cost with all steps; empty when none was cut short.

    The search's cost a forward is taken as constant, since the same rows run in each. A search that ended at success
    is whole as it is.
    """
    assert clock is not None
    edited = [record for record in records if record.cost]
    assert len(edited) == len(clock.spent)
    if all(record.stopped_early or record.steps == PUBLISHED_STEPS for record in edited):
        return []
    costs = []
    for record, spent in zip(edited, clock.spent, strict=True):
        more = 0.0 if record.stopped_early else whole_forwards / spent.forwards - 1
        totals = {name: getattr(record.cost, name) + more * getattr(spent, name) for name in COUNTED}
        costs.append(Cost(round(totals["forwards"]), round(totals["token_layers"]), totals["wall_s"], 0))
    return costs


def _ratios(rows: Sequence[dict[str, Cell]], bases: Sequence[str]) -> list[dict[str, Cell]]:
    """Return the median costs of each method as multiples of each optimizer's."""
    by_name = {row["method"]: row for row in rows}
    return [
        {
            "method": row["method"],
            **{f"{name} / {base}": _ratio(row[name], by_name[base][name]) for base in bases for name in COUNTED},
        }
        for row in rows
    ]


def _ratio(cost: Cell, base: Cell) -> float | None:
    return float(cost) / float(base) if cost and base else None


def _write(
    options: BenchOptions,
    bundle: Bundle,
    data_sha256: str,
    methods: dict[str, Contender],
    measured: dict[str, list[MeasuredRecord]],
    rows: list[dict[str, Cell]],
    ratios: list[dict[str, Cell]],
) -> None:
    document = {
        "settings": {
            "bundle": bundle.path.resolve().name,
            "base": bundle.manifest.base.name,
            "precision": bundle.manifest.precision,
            "edit_layer": bundle.manifest.edit_layer,
            "data_sha256": data_sha256,
            **{name: getattr(options, name) for name in ("skip", "limit", "seed", "threads")},
            "methods": {
                name: {"edit": asdict(each.edit), "search": dict(each.foreign.settings) if each.foreign else None}
                for name, each in methods.items()
            },
        },
        "rows": rows,
        "ratios": ratios,
        "records": {name: [record.to_dict() for record in records] for name, records in measured.items()},
    }
    write_atomic(Path(options.out), json.dumps(document, indent=1, allow_nan=False).encode(), mode=None)


def _print(rows: list[dict[str, Cell]], ratios: list[dict[str, Cell]], config: PublishedConfig) -> None:
    click.echo(f"means of success, medians of loss and costs; published: {config.steps} of {PUBLISHED_STEPS} steps run")
    click.echo(text_table(rows) + "\n\n" + text_table(ratios) + "\n")
    for row in rows:
        if row["forwards"]:
            click.echo(
                f"{row['method']}: {1000 * row['wall_s'] / row['forwards']:.1f} ms and "
                f"{row['token_layers'] / row['forwards']:,.0f} token-layers a forward, the edit's check included"
            )
    click.echo(
        "backprop: the backward passes, one a step, are in wall_s alone; published: its loss has less weight decay"
    )


if __name__ == "__main__":
    main()
