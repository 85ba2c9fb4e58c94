"""How much of the key statistics an edit needs: multipliers and bytes against what the edit does, and their time.

Usage: python -m scripts.statistics_curve BUNDLE --data counterfact.json --limit 30 --text more.txt --out DIR

Each record's delta is searched once, with the bundle's own statistics; then the same delta and key are written along
the direction of each of the other statistics, and measured. ``--search`` searches anew with each. Statistics are
collected from the project's sentences and from ``--text``; where that is too short for a multiplier, the column of keys
says so. DIR gets statistics_curve.json, with the figures of each record, and statistics_curve.md.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from mobiedit.calibration.compact_statistics import compact_statistics
from mobiedit.calibration.key_statistics import collect_key_statistics
from mobiedit.calibration.text import default_text, read_text
from mobiedit.export.checkpoint import Checkpoint
from mobiedit.runtime import Bundle, EditConfig, Method
from mobiedit.runtime.bundle_layout import KEY_STATISTICS
from mobiedit.runtime.bundle_writer import save_tensors
from mobiedit.runtime.cli_support import CONTEXT_SETTINGS, ErrorCommand
from mobiedit.runtime.edit_result import SolvedEdit
from mobiedit.runtime.edit_set import EditSet
from mobiedit.runtime.editor import Workbench, solve_edit
from mobiedit.runtime.evaluation import EvaluationRecord, metrics
from mobiedit.runtime.evaluation.cached_reader import CachedReader
from mobiedit.runtime.evaluation.summary import bootstrap_interval
from mobiedit.runtime.files import storage_errors, write_atomic
from mobiedit.runtime.key_statistics import KeyStatistics
from mobiedit.runtime.rank_one import InverseCovariance, rank_one_direction
from mobiedit.runtime.reader import Reader
from scripts.support.bench_options import BenchOptions, bench_parameters, model_option
from scripts.support.command_line import arguments_of, numbers_above_0
from scripts.support.host_model import matching_checkpoint, refuse_edits
from scripts.support.tables import Cell, markdown_table

SCORES = ("efficacy", "exact_match", "paraphrase", "neighbourhood", "argmax_unchanged")
_SHARES = "0.5,0.13,0.05,0.01"
Scores = dict[str, float | None]
Measured = tuple[dict[str, Cell], list[Scores]]


@dataclass(frozen=True)
class Variant:
    """Key statistics, what they were made of, and what they weigh."""

    row: dict[str, Cell]
    statistics: InverseCovariance


@click.command(
    cls=ErrorCommand,
    context_settings=CONTEXT_SETTINGS,
    params=bench_parameters("resume", "out", "fluency_tokens", "seed"),
)
@model_option
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="A folder for figures.")
@click.option("--text", type=click.Path(path_type=Path), help="More calibration text, one sentence a line.")
@click.option("--multipliers", default="0.1,1,10,40", help="Key vectors, as multiples of the MLP's width.")
@click.option("--shares", default=_SHARES, help="Directions kept, as shares of the MLP's width, beside all of them.")
@click.option("--search", is_flag=True, help="Search anew with each of the statistics.")
def main(
    model: str,
    text: Path | None,
    multipliers: str,
    shares: str,
    search: bool,
    **given: Any,  # noqa: ANN401 - click gives options of any type
) -> None:
    """Edit records of BUNDLE with key statistics of several sizes."""
    options = BenchOptions(**given, resume=False, fluency_tokens=0, seed=0)
    counts, kept = numbers_above_0(multipliers, float), numbers_above_0(shares, float)
    bundle, data = options.open(), options.read()
    refuse_edits(bundle, options.bundle)
    checkpoint = matching_checkpoint(bundle, model)
    if options.threads:
        torch.set_num_threads(options.threads)
    lines = [*default_text(), *(read_text(text) if text else [])]
    records = data.part(options.skip, options.limit)
    with tempfile.TemporaryDirectory() as work:
        made = _variants(checkpoint, bundle, lines, counts, kept, Path(work))
        for measured in _measure(bundle, records, list(made), Method(options.method), search=search):
            _write(options, data.sha256, measured)  # after every record: a run may be ended at any time
    click.echo((options.out / "statistics_curve.md").read_text("utf-8"))


def _variants(
    checkpoint: Checkpoint,
    bundle: Bundle,
    lines: Sequence[str],
    multipliers: Sequence[float],
    shares: Sequence[float],
    work: Path,
) -> Iterator[Variant]:
    """Yield the dense statistics of each multiplier, and its compact ones as a bundle would hold them."""
    manifest = bundle.manifest
    layer, width = manifest.edit_layer, manifest.shape.mlp_width
    ranks = [width - 1, *(max(1, min(width - 1, round(share * width))) for share in shares)]
    for multiplier in multipliers:
        began = time.perf_counter()
        dense = collect_key_statistics(
            checkpoint.model, checkpoint.tokenizer, [layer], manifest.sink_token, lines, multiplier
        )[layer]
        row = {"multiplier": multiplier, "keys": dense.keys, "collecting,_s": time.perf_counter() - began}
        if dense.keys < dense.wanted:
            click.echo(f"multiplier {multiplier:g}: the text has {dense.keys} of {dense.wanted} keys", err=True)
        yield Variant({**row, "form": "dense", "KB": dense.inverse_covariance.nbytes / 1e3}, dense.inverse_covariance)
        for rank in ranks:
            began = time.perf_counter()
            path = work / f"{multiplier:g}-{rank}.safetensors"
            save_tensors(path, compact_statistics(dense.inverse_covariance, rank).tensors)
            sizes = {"form": f"{rank} directions", "KB": path.stat().st_size / 1e3}
            yield Variant({**row, **sizes, "compacting,_s": time.perf_counter() - began}, KeyStatistics.find(path))


def _measure(
    bundle: Bundle, records: Sequence[EvaluationRecord], variants: Sequence[Variant], method: Method, *, search: bool
) -> Iterator[list[Measured]]:
    """Yield, after each record, every variant's row with its scores; the first is the model before the edit."""
    own = Variant({"form": "before the edit"}, KeyStatistics.find(bundle.path / KEY_STATISTICS))
    figures: list[list[Scores]] = [[] for _ in range(1 + len(variants))]
    nothing = EditSet((), bundle.manifest.slots, bundle.manifest.shape)
    for record in tqdm(records, unit="record"):
        before = CachedReader(bundle.reader())
        figures[0].append(_scores(record, before, before))
        found = _searched(bundle, record, own.statistics, method)
        for place, variant in enumerate(variants, start=1):
            if search:
                found = _searched(bundle, record, variant.statistics, method)
            direction = rank_one_direction(found.key, variant.statistics)
            slots = nothing.slots.with_edit(0, direction, found.search.delta, nothing.gate_of(found))
            now = CachedReader(Reader(bundle.decoder, bundle.tokenizer, bundle.manifest, slots))
            figures[place].append(_scores(record, now, before))
        yield list(zip((own.row, *(variant.row for variant in variants)), figures, strict=True))


def _searched(bundle: Bundle, record: EvaluationRecord, statistics: InverseCovariance, method: Method) -> SolvedEdit:
    """Return a record's edit."""
    config, manifest = EditConfig(method=method), bundle.manifest
    prefixes, canaries = manifest.row_prefixes, manifest.canaries
    search = bundle.search_for(config)
    bench = Workbench(bundle.decoder, bundle.tokenizer, prefixes, canaries, statistics, config, search)
    return solve_edit(bench, record.request, EditSet((), manifest.slots, manifest.shape))[0]


def _scores(record: EvaluationRecord, now: CachedReader, before: CachedReader) -> Scores:
    return {
        "efficacy": float(metrics.efficacy(record, now, before)),
        "exact_match": float(metrics.exact_match(record, now)),
        "paraphrase": metrics.paraphrase(record, now),
        "neighbourhood": metrics.neighbourhood(record, now, before),
        "argmax_unchanged": metrics.argmax_unchanged(record, now, before),
    }


def _write(options: BenchOptions, data_sha256: str, measured: Sequence[Measured]) -> None:
    rows = []
    for row, figures in measured:
        told = {name: [each[name] for each in figures if each[name] is not None] for name in SCORES}
        means: dict[str, Cell] = {name: sum(values) / len(values) if values else None for name, values in told.items()}
        interval = bootstrap_interval(told["argmax_unchanged"]) if told["argmax_unchanged"] else None
        rows.append({**row, **means, "interval": f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else None})
    columns = ("form", "multiplier", "keys", "collecting,_s", "compacting,_s", "KB", *SCORES, "interval")
    table = markdown_table([{name: row.get(name) for name in columns} for row in rows])
    command = f"python -m scripts.statistics_curve {arguments_of(click.get_current_context())}"
    document = {
        "command": command,
        "data_sha256": data_sha256,
        "rows": rows,
        "records": [figures for _, figures in measured],
    }
    with storage_errors(f"write {options.out}"):
        options.out.mkdir(parents=True, exist_ok=True)
    page = f"    {command}\n\n{len(measured[0][1])} records.\n\n{table}\n"
    for ending, content in {"json": json.dumps(document, indent=1, allow_nan=False), "md": page}.items():
        write_atomic(options.out / f"statistics_curve.{ending}", content.encode(), None)


if __name__ == "__main__":
    main()
