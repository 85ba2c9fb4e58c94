"""How few bits an edit bears: success against the edit layer's number format, and against the suffix's.

Usage: python -m scripts.experiments.quantisation_robustness FP32_BUNDLE --data counterfact.json --other W8A16_BUNDLE

The edit layer is rounded in numbers computed in FP32 (fake quantisation): its three weight matrices by output channel,
the down projection with the edit in it, and the value by token. An edit that is smaller than the format's step is lost,
as it would be in stored weights; this is stricter than the product, which keeps this layer in FP32 and the edit beside
it. All else is BUNDLE's. The suffix's precision is that of the bundles given, their edit layer in FP32.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from matplotlib.figure import Figure
from tqdm import tqdm

from mobiedit.runtime import Bundle, EditConfig, Method
from mobiedit.runtime.configuration import Optimizer, edit_config
from mobiedit.runtime.errors import RequestError
from scripts.support.bench_options import model_option
from scripts.support.experiment import Experiment, experiment_command, new_figure, optimizer_option
from scripts.support.fake_quantisation import NumberFormat, quantise_edit_layer
from scripts.support.figures import row_of
from scripts.support.host_model import HostModel
from scripts.support.tables import Cell

TITLE = "Bits of the edit layer and of the suffix"


@experiment_command(limit=3)
@optimizer_option(EditConfig().optimizer)
@model_option
@click.option(
    "--other",
    "others",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A bundle of the same model and layer in another precision; may be given more than once.",
)
def main(optimizer: str, model: str, others: tuple[Path, ...], **given: Any) -> None:  # noqa: ANN401 - click's options
    """Edit records with BUNDLE's edit layer in several number formats, and with other bundles."""
    experiment = Experiment(**given)
    config = replace(edit_config(Optimizer(optimizer), {}, experiment.seed), method=Method.ROME)
    bundle = experiment.open()
    bundles = [bundle, *map(experiment.open, others)]
    for other in bundles:
        if _identity(other) != _identity(bundle):
            raise RequestError(f"{other.path} is of other weights or another layer than {bundle.path}: export it again")
    host = HostModel.load(bundle, model)
    rows: list[dict[str, Cell]] = []
    for number_format in NumberFormat:
        rounded = experiment.open()
        quantise_edit_layer(rounded, host, number_format)
        rows.append(_row(experiment, rounded, config, str(number_format)))
    rows += [_row(experiment, other, config, "graph, fp32") for other in bundles]
    experiment.write("quantisation_robustness", TITLE, bundle, rows, _plot(rows))


def _identity(bundle: Bundle) -> tuple[str, int]:
    return bundle.manifest.base.weights_sha256, bundle.manifest.edit_layer


def _row(experiment: Experiment, bundle: Bundle, config: EditConfig, edit_layer: str) -> dict[str, Cell]:
    precision = bundle.manifest.precision
    named = tqdm(experiment.records(), desc=f"edit layer {edit_layer}, suffix {precision}", unit="edit")
    edits = [experiment.measure(bundle, record, config) for record in named]
    return {"edit_layer": edit_layer, "suffix": precision, **row_of(edits)}


def _plot(rows: list[dict[str, Any]]) -> Figure:
    figure, axes = new_figure(TITLE, 2)
    formats = {str(number_format) for number_format in NumberFormat}
    by_layer = [row for row in rows if row["edit_layer"] in formats]
    by_suffix = [row for row in rows if row["edit_layer"] not in formats]
    for axis, name, part in ((axes[0], "edit_layer", by_layer), (axes[1], "suffix", by_suffix)):
        for column, mark in (("exact_match", "s--"), ("efficacy", "^:"), ("probability", "o-")):
            axis.plot([row[name] for row in part], [row[column] for row in part], mark, label=column.replace("_", " "))
        axis.set(xlabel=f"precision of the {name.replace('_', ' ')}", ylim=(-0.05, 1.05))
        axis.legend()
    return figure


if __name__ == "__main__":
    main()
