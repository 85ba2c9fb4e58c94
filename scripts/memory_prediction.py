"""The peak memory that ``mobiedit info`` predicts, against that of fresh processes.

    python -m scripts.memory_prediction smollm2.bundle other.bundle --steps 8

Each bundle is edited with and without staging, and asked, each time in a process of its own. The edits go to a copy of
the bundle's folder that shares its files.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mobiedit.runtime.bundle_layout import EDITS
from mobiedit.runtime.cli_support import CONTEXT_SETTINGS, ErrorCommand
from mobiedit.runtime.errors import ExecutionError
from scripts.support.tables import Cell, markdown_table

_PROMPT, _SUBJECT, _TARGET = "The mother tongue of {} is", "Danielle Darrieux", "English"
_ASK = (
    "import sys; from mobiedit.runtime import open_bundle; from mobiedit.runtime.costs import peak_rss_bytes; "
    "open_bundle(sys.argv[1]).ask(sys.argv[2]); print(peak_rss_bytes())"
)
_MOBIEDIT = (sys.executable, "-m", "mobiedit.runtime.cli")


@dataclass(frozen=True)
class Comparison:
    """A peak of resident memory, in bytes, as it was predicted and as it was measured."""

    bundle: str
    work: str
    predicted: int
    measured: int

    @property
    def error(self) -> float:
        """The prediction's relative error."""
        return self.predicted / self.measured - 1


def compare(bundle: Path, steps: int | None) -> Iterator[Comparison]:
    """Yield the comparisons of a bundle: an edit with staging and without, and an answer.

    Raises
    ------
    ExecutionError
        When a process fails.
    """
    with tempfile.TemporaryDirectory(dir=bundle.parent, prefix=f".{bundle.name}.") as folder:
        copy = Path(folder) / "bundle"
        shutil.copytree(bundle, copy, ignore=shutil.ignore_patterns(EDITS), copy_function=os.link)
        for staging in ("on", "off"):
            predicted = _json("info", str(copy), "--staging", staging)["predicted_peak_bytes"]
            options = ("--staging", staging, *(("--steps", str(steps)) if steps else ()))
            request = ("--prompt", _PROMPT, "--subject", _SUBJECT, "--target", _TARGET)
            shutil.rmtree(copy / EDITS, ignore_errors=True)
            edit = _json("edit", str(copy), *request, *options)
            yield Comparison(bundle.name, f"edit, staging {staging}", predicted["edit"], edit["cost"]["peak_rss_bytes"])
        asked = int(_output("ask", (sys.executable, "-c", _ASK, str(copy), "The capital of France is")))
        yield Comparison(bundle.name, "ask", predicted["ask"], asked)


def table(comparisons: list[Comparison]) -> str:
    """Return the comparisons as Markdown."""
    rows: list[dict[str, Cell]] = []
    for each in comparisons:
        sizes = {"predicted, MB": round(each.predicted / 1e6), "measured, MB": round(each.measured / 1e6)}
        rows.append({"bundle": each.bundle, "work": each.work, **sizes, "error": f"{each.error:+.0%}"})
    return markdown_table(rows)


def _json(*arguments: str) -> Any:  # noqa: ANN401 - any JSON value
    return json.loads(_output(arguments[0], (*_MOBIEDIT, *arguments, "--json")))


def _output(work: str, command: tuple[str, ...]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not done.stdout:  # 1: the edit did not pass its check
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ExecutionError(f"{work} failed ({reason}): run it by hand on this bundle")
    return done.stdout


@click.command(cls=ErrorCommand, context_settings=CONTEXT_SETTINGS)
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--steps", type=click.IntRange(1), help="Steps of the search at most; its default by default.")
def main(bundles: tuple[Path, ...], steps: int | None) -> None:
    """Compare predicted and measured peak memory of BUNDLES."""
    comparisons = []
    for bundle in bundles:
        for comparison in compare(bundle, steps):
            comparisons.append(comparison)
            click.echo(f"{comparison}", err=True)
    click.echo(table(comparisons))


if __name__ == "__main__":
    main()
