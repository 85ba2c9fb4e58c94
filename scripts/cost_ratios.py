"""What each method's edits cost as multiples of one's, over the records of one or several runs of `compare_costs`.

Usage: python -m scripts.cost_ratios COSTS.json MORE.json --base gn

Medians hide what the long searches take, and a sum is made of them: so the ratio of the medians, the geometric mean of
the records' ratios, the ratio of all records together, and that of the records which both methods solve, so that none
is cheaper for giving up. The published search's are of the steps that were run.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from mobiedit.runtime.cli_support import CONTEXT_SETTINGS, ErrorCommand
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.evaluation import MeasuredRecord
from mobiedit.runtime.files import storage_errors
from scripts.support.figures import COUNTED
from scripts.support.tables import Cell, markdown_table

Records = Mapping[str, Sequence[MeasuredRecord]]


@click.command(cls=ErrorCommand, context_settings=CONTEXT_SETTINGS)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--base", default="gn", help="The method whose costs are 1.")
def main(files: tuple[Path, ...], base: str) -> None:
    """Print the ratios of costs in FILES, those of `compare_costs` on different records, as Markdown."""
    merged: dict[str, list[MeasuredRecord]] = {}
    for path in files:
        for name, records in _read(path).items():
            merged.setdefault(name, []).extend(records)
    if base not in merged:
        raise RequestError(f"no method is called {base}: give --base {' or '.join(merged)}")
    identifiers = [record.identifier for record in merged[base]]
    if len(set(identifiers)) < len(identifiers):
        raise RequestError("the files share records: give those of different ones")
    click.echo(markdown_table(cost_ratios(merged, base)))


def cost_ratios(measured: Records, base: str) -> list[dict[str, Cell]]:
    """Return a row for each other method and cost; a method's records are those of ``base``, in the same order."""
    rows: list[dict[str, Cell]] = []
    for name, records in measured.items():
        pairs = [(a, b) for a, b in zip(records, measured[base], strict=True) if a.cost and b.cost]
        if name == base or not pairs:
            continue
        solved = [(a, b) for a, b in pairs if a.post.exact_match and b.post.exact_match]
        for cost in COUNTED:
            ours, theirs = ([getattr(each.cost, cost) for each in side] for side in zip(*pairs, strict=True))
            rows.append(
                {
                    "method": name,
                    "cost": cost.replace("_", " "),
                    "records": len(pairs),
                    "of the medians": statistics.median(ours) / statistics.median(theirs),
                    "geometric mean": statistics.geometric_mean(a / b for a, b in zip(ours, theirs, strict=True)),
                    "all together": _together(pairs, cost),
                    "both solve": len(solved),
                    "these together": _together(solved, cost),
                }
            )
    return rows


def _together(pairs: Sequence[tuple[MeasuredRecord, MeasuredRecord]], cost: str) -> float | None:
    first, second = (sum(getattr(pair[side].cost, cost) for pair in pairs) for side in (0, 1))
    return first / second if second else None


def _read(path: Path) -> dict[str, list[MeasuredRecord]]:
    if not path.is_file():
        raise RequestError(f"{path} is missing: name a file that compare_costs wrote")
    with storage_errors(f"read {path}"):
        data = path.read_bytes()
    try:
        raw = json.loads(data)["records"].items()
        return {name: [MeasuredRecord.from_dict(record) for record in records] for name, records in raw}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RequestError(f"{path} is damaged, or no file of compare_costs: give another one") from error


if __name__ == "__main__":
    main()
