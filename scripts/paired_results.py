"""Two ways to edit on the same records, from the files of `mobiedit bench`, paired record by record.

Usage: python -m scripts.paired_results --first gn.json --second oracle.json

Either may be given more than once, for a run in parts. Records are matched by their identifiers, those that only one
side has are left out, and so are scores that a record lacks on either side. What was before the edit is the
first's. The standard error is of the mean difference, and the interval its bootstrap. "echo" is the share of answers,
as far as the benchmark decodes them, that hold the target more than once.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from mobiedit.runtime.cli_support import CONTEXT_SETTINGS, ErrorCommand
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.evaluation import MeasuredRecord
from mobiedit.runtime.evaluation.result_file import read_result
from mobiedit.runtime.evaluation.summary import SCORES, bootstrap_interval
from scripts.support.figures import COUNTED
from scripts.support.tables import Cell, markdown_table

Files = Mapping[Path, tuple[dict[str, Any], list[MeasuredRecord]]]
Pairs = Sequence[tuple[MeasuredRecord, MeasuredRecord]]

_FILES = click.Path(path_type=Path)


@click.command(cls=ErrorCommand, context_settings=CONTEXT_SETTINGS)
@click.option("--first", required=True, multiple=True, type=_FILES, help="A result; again for its other parts.")
@click.option("--second", required=True, multiple=True, type=_FILES, help="What it is compared with, likewise.")
def main(first: tuple[Path, ...], second: tuple[Path, ...]) -> None:
    """Print what two benchmarks have on the records of both, and the differences, as Markdown."""
    files = {path: read_result(path) for path in (*first, *second)}
    _require_one_source(files)
    ours, theirs = _records(first, files), _records(second, files)
    pairs = [(record, theirs[name]) for name, record in ours.items() if name in theirs]
    if not pairs:
        raise RequestError("no record is in both results: give those of one data file, with parts that overlap")
    click.echo(f"{len(pairs)} records in both, {len(ours) - len(pairs)} and {len(theirs) - len(pairs)} in one alone\n")
    scored = (
        _score_row(name, partial(_score, name), pairs) for name in ("token_accuracy", *SCORES, "inferences_unchanged")
    )
    rows = [*scored, _score_row("echo", _echo, pairs)]
    click.echo(markdown_table([row for row in rows if row]))
    for cost in COUNTED:
        _print_ratio(cost, pairs)


def _require_one_source(files: Files) -> None:
    """Refuse results of several data files: their records share identifiers, and are others."""
    (first, (settings, _)), *others = files.items()
    for path, (other, _) in others:
        if other.get("data_sha256") != settings.get("data_sha256"):
            raise RequestError(f"{path} and {first} are of different data files: give results of the same one")


def _records(paths: Sequence[Path], files: Files) -> dict[str, MeasuredRecord]:
    """Return the records of a result's parts by their identifiers; RequestError where parts overlap."""
    records: dict[str, MeasuredRecord] = {}
    for path in paths:
        for record in files[path][1]:
            if record.identifier in records:
                raise RequestError(f"{path} has record {record.identifier} again: give parts that do not overlap")
            records[record.identifier] = record
    return records


def _score(name: str, record: MeasuredRecord, side: str) -> float | None:
    value: float | None = getattr(getattr(record, side), name)
    return value


def _echo(record: MeasuredRecord, side: str) -> float | None:
    answer = record.answer.get(side)
    return float(answer.count(record.target) > 1) if answer else None


def _score_row(name: str, of: Callable[[MeasuredRecord, str], float | None], pairs: Pairs) -> dict[str, Cell] | None:
    """Return a score's means and their difference, None where no record tells it on both sides."""
    told = [(of(a, "pre"), of(a, "post"), of(b, "post")) for a, b in pairs]
    whole = np.array([each for each in told if None not in each], np.float64).reshape(-1, 3)
    if not len(whole):
        return None
    before, first, second = whole.mean(axis=0)
    differences = whole[:, 1] - whole[:, 2]
    low, high = bootstrap_interval(differences.tolist())
    return {
        "score": name.replace("_", " "),
        "records": len(whole),
        "before": f"{before:.3f}",
        "first": f"{first:.3f}",
        "second": f"{second:.3f}",
        "difference": f"{differences.mean():+.3f}",
        "standard_error": f"{_standard_error(differences):.3f}",
        "95_%": f"{low:+.3f} to {high:+.3f}",
    }


def _print_ratio(name: str, pairs: Pairs) -> None:
    """Print a cost's ratio, first to second, over records that both have searched for."""
    costs = [(getattr(a.cost, name), getattr(b.cost, name)) for a, b in pairs if a.cost and b.cost]
    ratios = [first / second for first, second in costs if first > 0 and second > 0]
    if ratios:
        label = name.replace("_", " ")
        click.echo(f"{label}: x {statistics.geometric_mean(ratios):.2f}, geometric mean of {len(ratios)} records")


def _standard_error(values: NDArray[np.float64]) -> float:
    """Return that of a mean."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


if __name__ == "__main__":
    main()
