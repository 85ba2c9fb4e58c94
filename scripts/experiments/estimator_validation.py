"""How well gradients are estimated by forward passes: cosine with backpropagation's gradient, and variance.

Usage: python -m scripts.experiments.estimator_validation BUNDLE --data counterfact.json

At delta = 0 and half-way to backpropagation's solution. ``square error`` is the mean square distance of the estimates
from the gradient, ``variance`` that from their own mean, both in units of the gradient's square. ``zo`` draws its
directions and is scaled to be unbiased (by D / N): both are D / N - 1 for N orthonormal directions and exact
derivatives. The others draw nothing and have no variance. ``lens`` is scaled to the gradient's length. ``gn`` is the
gradient's part in the span of the lens's directions, as vector-valued differences show it.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm import tqdm

from mobiedit.runtime import Bundle, EditConfig
from mobiedit.runtime.bundle_layout import LENS
from mobiedit.runtime.lens import Lens
from mobiedit.runtime.search import SearchTask
from mobiedit.runtime.zeroth_order import estimate_gradient, random_directions
from scripts.support.backprop import BackpropConfig, backprop
from scripts.support.bench_options import model_option
from scripts.support.captured import capture_task
from scripts.support.experiment import Experiment, experiment_command, new_figure
from scripts.support.host_model import HostModel, refuse_edits
from scripts.support.host_problem import HostProblem
from scripts.support.lens_estimates import lens_gradient, projected_gradients
from scripts.support.tables import Cell

Floats = NDArray[np.float32]
Estimates = dict[int, Floats]
"""Estimates [D] of the gradient by the number of directions that they took."""

COUNTS = (1, 2, 4, 8, 16, 32, 64)
TITLE = "Gradient estimates against backpropagation"


def scalar_differences(task: SearchTask, delta: Floats, mu: float, rng: np.random.Generator) -> Estimates:
    """Return the zeroth-order search's estimates, each with the first N of the same directions."""
    counts = [n for n in COUNTS if n <= len(delta)]
    directions = random_directions(rng, counts[-1], len(delta))
    estimates: Estimates = {}
    total = np.zeros_like(delta)
    for before, n in zip([0, *counts], counts, strict=False):
        total = total + estimate_gradient(task, delta, directions[before:n], mu)[0]
        estimates[n] = total
    return estimates


Estimator = Callable[[SearchTask, Floats, float, np.random.Generator], Estimates]
DRAWN = ("zo",)
"""Estimators whose directions are drawn; the others give the same again."""
UNPERTURBED = ("lens",)
"""Estimators that take no direction: mu is told as 0."""


@dataclass(frozen=True)
class Closeness:
    """How close a record's estimates, a draw each, come to the gradient; squares in units of the gradient's."""

    cosines: list[float]
    square_error: float
    variance: float | None
    """None where one draw is all there is of drawn directions."""

    @staticmethod
    def of(name: str, estimates: list[Floats], gradient: Floats, n: int) -> Closeness:
        """Compare the estimates that ``name`` made with ``n`` directions."""
        length = np.linalg.norm(gradient)
        unit, norms = gradient / length, np.linalg.norm(estimates, axis=1)
        directions = np.stack(estimates) / np.where(norms > 0, norms, 1)[:, None]
        scaled = directions if name == "lens" else np.stack(estimates) / length
        if name == "zo":
            scaled = scaled * len(gradient) / n
        variance = float(scaled.var(axis=0, ddof=1).sum()) if len(scaled) > 1 else None
        return Closeness(
            [float(cosine) for cosine in directions @ unit],
            float(((scaled - unit) ** 2).sum()) / len(scaled),
            variance if name in DRAWN else 0.0,
        )


def estimators_with(lens: Lens) -> dict[str, Estimator]:
    """Return the estimators by name; one that takes no perturbation gives its estimate for 0 directions."""

    def of_lens(task: SearchTask, delta: Floats, mu: float, rng: np.random.Generator) -> Estimates:
        return {0: lens_gradient(task, delta, lens)}

    def projected(task: SearchTask, delta: Floats, mu: float, rng: np.random.Generator) -> Estimates:
        counts = [n for n in COUNTS if n <= len(delta)]
        return dict(zip(counts, projected_gradients(task, delta, mu, lens, counts), strict=True))

    return {"zo": scalar_differences, "lens": of_lens, "gn": projected}


@experiment_command(limit=3)
@model_option
@click.option(
    "--mu", "lengths", type=float, multiple=True, default=(1e-4, 1e-3, 1e-2, 1e-1), help="Relative to the value's norm."
)
@click.option("--draws", type=click.IntRange(1), default=4, help="Sets of directions, for estimators that draw them.")
def main(model: str, lengths: tuple[float, ...], draws: int, **given: Any) -> None:  # noqa: ANN401 - click's options
    """Compare gradient estimates on BUNDLE with backpropagation through its source model."""
    experiment = Experiment(**given)
    bundle = experiment.open()
    refuse_edits(bundle, experiment.bundle)
    host = HostModel.load(bundle, model)
    estimators = estimators_with(Lens.read(experiment.bundle / LENS))
    found: dict[tuple[str, str, float, int], list[Closeness]] = defaultdict(list)
    for index, record in enumerate(tqdm(experiment.records(), unit="record")):
        task = capture_task(bundle, record.request, EditConfig())
        for place, delta, gradient in _places(task, host):
            for name, estimator in estimators.items():
                for mu in (0.0,) if name in UNPERTURBED else lengths:
                    rngs = [np.random.default_rng((experiment.seed, index, draw)) for draw in range(draws)]
                    drawn = rngs if name in DRAWN else rngs[:1]
                    estimates = [estimator(task, delta, mu * task.value_norm, rng) for rng in drawn]
                    for n in estimates[0]:
                        same = [each[n] for each in estimates]
                        found[name, place, mu, n].append(Closeness.of(name, same, gradient, n))
    rows = [_row(key, figures, bundle) for key, figures in found.items()]
    experiment.write("estimator_validation", TITLE, bundle, rows, _plot(rows))


def _places(task: SearchTask, host: HostModel) -> list[tuple[str, Floats, Floats]]:
    """Return the deltas that gradients are estimated at, by name, with the exact gradients."""
    config = EditConfig()
    solution = backprop(task, host, BackpropConfig(), config).delta
    problem = HostProblem(task, host, config.loss, whole=False)
    deltas = {"zero": np.zeros_like(solution), "half-way": solution / 2}
    return [(name, delta, problem.gradient(delta)) for name, delta in deltas.items()]


def _row(key: tuple[str, str, float, int], records: list[Closeness], bundle: Bundle) -> dict[str, Cell]:
    name, place, mu, n = key
    cosines = [cosine for record in records for cosine in record.cosines]
    variances = [record.variance for record in records if record.variance is not None]
    width = bundle.manifest.shape.width
    return {
        "estimator": name,
        "delta": place,
        "mu": mu,
        "directions": n,
        "cosine": statistics.mean(cosines),
        "cosine_deviation": statistics.pstdev(cosines),
        "cosine_of_exact_derivatives": math.sqrt(n / width) if n else None,
        "square_error": statistics.mean(record.square_error for record in records),
        "variance": statistics.mean(variances) if variances else None,
    }


def _plot(rows: list[dict[str, Any]]) -> Figure:
    figure, axes = new_figure(TITLE, 2)
    for axis, place in zip(axes, ("zero", "half-way"), strict=True):
        here = [row for row in rows if row["delta"] == place]
        for name, mu in dict.fromkeys((row["estimator"], row["mu"]) for row in here):
            line = [row for row in here if (row["estimator"], row["mu"]) == (name, mu)]
            axis.plot(*_xy(line, "cosine"), marker="o", label=f"{name}, mu {mu:g}" if mu else name)
        axis.plot(*_xy(line, "cosine_of_exact_derivatives"), "k--", label="exact derivatives")
        axis.set(xscale="symlog", xlabel="directions", ylabel="cosine with the gradient", title=f"delta {place}")
        axis.legend()
    return figure


def _xy(line: list[dict[str, Any]], column: str) -> tuple[list[int], list[float]]:
    kept = [row for row in line if row[column] is not None]
    return [row["directions"] for row in kept], [row[column] for row in kept]


if __name__ == "__main__":
    main()
