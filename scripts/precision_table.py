"""What each precision loses and weighs: a model exported in each of them, as a Markdown table.

Usage: python -m scripts.precision_table smollm2-135m --out DIR --layer 10

DIR gets a bundle and a report of each precision, and precisions.json with the rows. A name may end in ``+rotate`` or
``-rotate`` to set what is on or off by default. The lens has no part in it: it sees few facts unless asked otherwise.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from mobiedit.export.configuration import ExportConfig, Precision
from mobiedit.export.pipeline import ExportReport, export_bundle
from mobiedit.runtime.cli_support import CONTEXT_SETTINGS, ErrorCommand
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.files import write_atomic
from scripts.support.tables import Cell, markdown_table

_ROTATE = {"+rotate": True, "-rotate": False}


@click.command(cls=ErrorCommand, context_settings=CONTEXT_SETTINGS)
@click.argument("model")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A folder for the bundles and the figures.")
@click.option("--layer", type=int, default=10, help="The edit layer.")
@click.option(
    "--precisions", default=",".join(Precision), help="Separated by commas; each may end in +rotate, -rotate."
)
@click.option("--lens-rows", type=int, default=64, help="Facts that the fitting of the lens sees.")
@click.option("--dynamic-multiplier", type=float, default=1.0, help="Key vectors, as a multiple of the MLP's width.")
def main(model: str, out: Path, layer: int, precisions: str, lens_rows: int, dynamic_multiplier: float) -> None:
    """Export MODEL in each precision and print what it loses and weighs."""
    wanted = {name: _parsed(name) for name in precisions.split(",")}
    rows: list[dict[str, Cell]] = []
    for name, (precision, rotate) in wanted.items():
        config = ExportConfig(
            model,
            out / f"{name}.bundle",
            layer=layer,
            precision=precision,
            rotate=rotate,
            report=out / f"{name}.report",
            lens_rows=lens_rows,
            dynamic_multiplier=dynamic_multiplier,
            force=True,
        )
        rows.append(_row(name, export_bundle(config), config.rotated))
        write_atomic(out / "precisions.json", (json.dumps(rows, indent=1) + "\n").encode(), None)
    click.echo(markdown_table(rows))


def _parsed(name: str) -> tuple[Precision, bool | None]:
    for ending, rotate in _ROTATE.items():
        if name.endswith(ending):
            return _precision(name.removesuffix(ending)), rotate
    return _precision(name), None


def _precision(name: str) -> Precision:
    if name not in [each.value for each in Precision]:
        raise RequestError(f"precision {name!r} is not known: choose of {', '.join(Precision)}")
    return Precision(name)


def _row(name: str, report: ExportReport, rotated: bool) -> dict[str, Cell]:
    written, activations = report.written, report.manifest.statistics.get("activations", {})
    return {
        "precision": name,
        "rotated": "yes" if rotated else "no",
        "NLL_change": f"{written.nll_change:+.4f}",
        "cosine": f"{written.mean_cosine:.4f}",
        "bundle,_MiB": f"{sum(entry.size for entry in report.manifest.files.values()) / 2**20:.1f}",
        "MatMul_activations_at_8_bits": f"{activations['share']:.0%}" if activations else "-",
    }


if __name__ == "__main__":
    main()
