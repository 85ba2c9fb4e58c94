"""How much the zeroth-order search depends on its settings: mu, directions and learning rate, one at a time.

Usage: python -m scripts.experiments.sensitivity BUNDLE --data counterfact.json

Lengths are relative to the norm of the value. More directions cost more forwards a step; the steps stay the same.
"""

from __future__ import annotations

from typing import Any

import click
from matplotlib.figure import Figure
from tqdm import tqdm

from mobiedit.runtime.configuration import Optimizer, edit_config
from scripts.support.experiment import Experiment, experiment_command, new_figure
from scripts.support.figures import row_of
from scripts.support.tables import Cell

TITLE = "Settings of the zeroth-order search"
GRID: dict[str, tuple[float, ...]] = {
    "mu": (1e-4, 1e-3, 1e-2, 1e-1),
    "directions": (1, 2, 4, 8, 10),
    "learning_rate": (0.1, 0.2, 0.4, 0.8, 1.6),
}


@experiment_command(limit=2)
@click.option("--steps", type=click.IntRange(1), help="Steps at most; the search's own number when left out.")
def main(steps: int | None, **given: Any) -> None:  # noqa: ANN401 - click's options
    """Edit records of BUNDLE with other settings than the default ones."""
    experiment = Experiment(**given)
    bundle, records = experiment.open(), experiment.records()
    rows: list[dict[str, Cell]] = []
    with tqdm(total=len(records) * sum(map(len, GRID.values())), unit="edit") as bar:
        for name, values in GRID.items():
            for value in values:
                config = edit_config(Optimizer.ZO, {"seed": experiment.seed, "steps": steps, name: value})
                edits = []
                for record in records:
                    edits.append(experiment.measure(bundle, record, config))
                    bar.update()
                rows.append({"setting": name, "value": value, **row_of(edits)})
    experiment.write("sensitivity", TITLE, bundle, rows, _plot(rows))


def _plot(rows: list[dict[str, Any]]) -> Figure:
    figure, axes = new_figure(TITLE, len(GRID))
    for axis, name in zip(axes, GRID, strict=True):
        here = [row for row in rows if row["setting"] == name]
        values = [row["value"] for row in here]
        axis.plot(values, [row["loss"] for row in here], "o-", label="loss")
        axis.plot(values, [row["exact_match"] for row in here], "s--", label="exact match")
        axis.set(xlabel=name.replace("_", " "), xscale="linear" if name == "directions" else "log")
        axis.legend()
    return figure


if __name__ == "__main__":
    main()
