"""``mobiedit bench``: measure edits on a file of records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from ..bundle import Bundle, open_bundle
from ..cli_support import bundle_argument, contrast_option, execution_options, progress_option
from ..closed_form import Method
from ..configuration import ExecutionConfig, Optimizer, edit_config
from ..contrast import contrasts_of
from .bench import BenchConfig, ForeignSearch, run_bench
from .data_file import DataFile, read_records
from .records import Format
from .summary import COSTS, SCORES

_DEFAULTS = BenchConfig()


@click.command()
@bundle_argument
@click.option("--data", type=click.Path(path_type=Path), required=True, help="A JSON list of records.")
@click.option(
    "--format",
    "record_format",
    type=click.Choice([each.value for each in Format]),
    help="What the records are; told from their fields when left out.",
    show_default=False,
)
@click.option("--limit", type=click.IntRange(1), help="Take so many records; all when left out.", show_default=False)
@click.option("--skip", type=click.IntRange(0), default=_DEFAULTS.skip, help="Leave out the first records.")
@click.option(
    "--optimizer",
    type=click.Choice([each.value for each in Optimizer]),
    default=_DEFAULTS.edit.optimizer.value,
    help="gn: Gauss-Newton, zo: zeroth order; both by forward passes alone.",
)
@click.option(
    "--method",
    type=click.Choice([each.value for each in Method]),
    default=_DEFAULTS.edit.method.value,
    help="How an edit acts: gated on keys like its own alone; rome, memit, emmet on all in proportion.",
)
@contrast_option
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=_DEFAULTS.seed,
    help="Seed of the zeroth-order search and of sampled texts.",
)
@click.option("--json", "out", type=click.Path(path_type=Path), required=True, help="The file that is written.")
@click.option("--resume", is_flag=True, help="Go on after the records that the file holds; --limit may be raised.")
@click.option(
    "--fluency-tokens",
    type=click.IntRange(0),
    default=_DEFAULTS.fluency_tokens,
    help="Length of the text that tells fluency; 0 leaves it out.",
)
@progress_option
@execution_options
def bench(
    bundle: Path,
    data: Path,
    record_format: str | None,
    limit: int | None,
    skip: int,
    optimizer: str,
    method: str,
    contrast: bool | None,
    seed: int,
    out: Path,
    resume: bool,
    fluency_tokens: int,
    progress: bool | None,
    execution: ExecutionConfig,
) -> None:
    """Measure edits of BUNDLE on records: what they teach, what they harm, what they cost.

    One record at a time is edited and measured; nothing is committed. Stop and go on at any time with --resume.
    """
    records = read_records(data, Format(record_format) if record_format else None)
    contrasts = contrasts_of(Method(method), wanted=contrast)
    edit = replace(edit_config(Optimizer(optimizer), {}, seed), method=Method(method), contrasts=contrasts)
    config = BenchConfig(edit, seed, skip, limit, fluency_tokens)
    bench_and_print(open_bundle(bundle, execution), records, config, out, resume=resume, progress=progress)


def bench_and_print(
    bundle: Bundle,
    records: DataFile,
    config: BenchConfig,
    out: Path,
    *,
    resume: bool,
    foreign: ForeignSearch | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Run a benchmark with a progress bar, print its summary, and return what its file holds; see `run_bench`."""
    with tqdm(desc="bench", unit="edit", disable=None if progress is None else not progress) as bar:

        def show(done: int, total: int) -> None:
            if bar.total is None:  # what was measured by an earlier run tells nothing about this one's speed
                bar.reset(total)
                bar.initial = bar.n = done
                bar.refresh()
            bar.update(done - bar.n)

        document = run_bench(bundle, records, config, out, resume=resume, foreign=foreign, report=show)
    _print_summary(document)
    return document


def _print_summary(document: dict[str, Any]) -> None:
    summary, further = document["summary"], document["further"]
    click.echo(f"{len(document['records'])} records, {further['refused']} refused")
    click.echo(f"{'':<18} {'pre':>9} {'post':>9}   95 % interval")
    for name, entry in [(name, summary[name]) for name in SCORES] + [("token_accuracy", further["token_accuracy"])]:
        if entry is None:
            click.echo(f"{name:<18} {'-':>9} {'-':>9}")
        else:
            low, high = entry["ci95"]
            click.echo(f"{name:<18} {entry['pre']:>9.4f} {entry['post']:>9.4f}   {low:.4f} to {high:.4f}")
    click.echo(f"{'committed':<18} {'':>9} {further['committed']:>9.4f}")
    click.echo(f"{'':<18} {'median':>15} {'max':>15}")
    for name in COSTS:
        entry = summary[name] or {"median": 0, "max": 0}
        click.echo(f"{name:<18} {round(entry['median'], 2):>15,} {round(entry['max'], 2):>15,}")
    if worst := further["worst_decile"]:
        told = f"target probability {worst['target_probability']:.4f}, exact match {worst['exact_match']:.4f}"
        click.echo(
            f"worst decile: {worst['records']} records, {told}, {worst['forwards'] or 0:,.0f} forwards in the median"
        )
