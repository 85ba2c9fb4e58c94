"""What the experiments share: their options, the edits that they measure, and the files that they write."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mobiedit.runtime import Bundle, EditConfig, ExecutionConfig, open_bundle
from mobiedit.runtime.cli_support import CONTEXT_SETTINGS, ErrorCommand
from mobiedit.runtime.configuration import Optimizer
from mobiedit.runtime.evaluation import EvaluationRecord, ForeignSearch, Format, MeasuredRecord, read_records
from mobiedit.runtime.evaluation.bench import measure_record
from mobiedit.runtime.files import storage_errors, write_atomic

from .bench_options import bench_parameters
from .command_line import arguments_of, without_folders
from .tables import Cell, markdown_table, text_table

_STYLE: Any = {"svg.hashsalt": "mobiedit", "svg.fonttype": "none", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}


@dataclass(frozen=True)
class Experiment:
    """What the command line said."""

    bundle: Path
    data: Path
    record_format: str | None
    limit: int
    skip: int
    seed: int
    threads: int
    out: Path

    def open(self, bundle: Path | None = None, *, verify: bool = True) -> Bundle:
        """Open the bundle, or another one."""
        return open_bundle(bundle or self.bundle, ExecutionConfig(self.threads), verify=verify)

    def records(self) -> tuple[EvaluationRecord, ...]:
        """Return the records to edit."""
        data = read_records(self.data, Format(self.record_format) if self.record_format else None)
        return data.part(self.skip, self.limit)

    def measure(
        self, bundle: Bundle, record: EvaluationRecord, edit: EditConfig, foreign: ForeignSearch | None = None
    ) -> MeasuredRecord:
        """Edit a record and measure it; nothing is committed."""
        return measure_record(bundle, record, edit, 0, (self.seed,), foreign)

    def write(self, name: str, title: str, bundle: Bundle, rows: Sequence[Mapping[str, Cell]], figure: Figure) -> None:
        """Print the rows, and write them as JSON and Markdown, and the plot as SVG."""
        click.echo(text_table(rows))
        manifest = bundle.manifest
        settings = {
            "base": without_folders(manifest.base.name),
            "precision": manifest.precision,
            "edit_layer": manifest.edit_layer,
            "data": self.data.name,
            "records": len(self.records()),
            "seed": self.seed,
        }
        context = click.get_current_context()
        if "optimizer" in context.params:
            settings["optimizer"] = context.params["optimizer"]
        command = f"python -m scripts.experiments.{name} {arguments_of(context)}"
        described = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in settings.items())
        page = f"# {title}\n\n    {command}\n\n{described}.\n\n{markdown_table(rows)}\n\n![{title}]({name}.svg)\n"
        document = {"command": command, "settings": settings, "rows": rows}
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None}, bbox_inches="tight")
        files = {"json": json.dumps(document, indent=1, allow_nan=False), "md": page, "svg": drawn.getvalue()}
        with storage_errors(f"write {self.out}"):
            self.out.mkdir(parents=True, exist_ok=True)
        for ending, text in files.items():
            write_atomic(self.out / f"{name}.{ending}", text.encode(), mode=None)


def experiment_command(limit: int) -> Callable[[Callable[..., None]], click.Command]:
    """Return the decorator of an experiment's ``main``, which edits ``limit`` records when nothing else is said."""
    own = [
        click.Option(["--limit"], type=click.IntRange(1), default=limit, help="Take so many records."),
        click.Option(
            ["--out"],
            type=click.Path(path_type=Path, file_okay=False),
            default=Path("docs/experiments"),
            help="The folder that is written to.",
        ),
    ]
    shared = [p for p in bench_parameters("limit", "out") if p.name in Experiment.__dataclass_fields__]
    return click.command(cls=ErrorCommand, context_settings=CONTEXT_SETTINGS, params=[*shared, *own])


def optimizer_option(default: Optimizer, more: str = "") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option of how edits are searched for; ``more`` ends its help."""
    return click.option(
        "--optimizer",
        type=click.Choice([each.value for each in Optimizer]),
        default=default.value,
        help=f"How the edits are searched for{more}.",
    )


def new_figure(title: str, columns: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with plots side by side, in the style of all experiments."""
    mpl.rcParams.update(_STYLE)
    figure = Figure(figsize=(4.5 * columns, 3.5), layout="constrained")
    figure.suptitle(title)
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])
