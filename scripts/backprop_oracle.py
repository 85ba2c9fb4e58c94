"""ROME with backpropagation in FP32, as the reference: same model, layer, rows, key, direction and loss as BUNDLE.

Usage: python -m scripts.backprop_oracle BUNDLE --data counterfact.json --limit 20 --no-contrast --json OUT

The file is that of ``mobiedit bench``. Adam takes at most 25 steps of rate 0.5 and the clamp is ROME's (Meng et al.
2022, and its public code: v_num_grad_steps 25, v_lr 0.5, clamp_norm_factor 4, stop below 0.05); the loss is the one
that every search here has, but for the echo (`LossConfig`), which ROME's has not. A forward evaluates all rows once. A
backward pass, one a step, goes back through the layers above the edit layer alone, since no weight has a gradient:
about as much work as their forward. It is in the seconds, and in neither ``forwards`` nor ``token_layers``. ROME tells
an edit from no other context: ``--no-contrast``. Without this a delta of backpropagation is written as those of
``mobiedit bench`` are.
"""

from __future__ import annotations

from typing import Any

import click
import torch

from mobiedit.runtime import EditConfig, Method, PrefixCache
from mobiedit.runtime.cli_support import CONTEXT_SETTINGS, ErrorCommand, contrast_option
from mobiedit.runtime.contrast import contrasts_of
from mobiedit.runtime.evaluation.commands import bench_and_print
from scripts.support.backprop import ORACLE_LOSS, BackpropConfig, backprop_search
from scripts.support.bench_options import BenchOptions, bench_parameters, model_option
from scripts.support.host_model import HostModel, refuse_edits

CACHES = {"none": PrefixCache.OFF, "exact": PrefixCache.EXACT}


@click.command(cls=ErrorCommand, context_settings=CONTEXT_SETTINGS, params=bench_parameters())
@model_option
@click.option("--steps", type=click.IntRange(1), default=BackpropConfig.steps, help="Steps of Adam at most.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    default=BackpropConfig.learning_rate,
    help="Another one is another draw of the same search.",
)
@click.option(
    "--cache",
    type=click.Choice(list(CACHES)),
    default="none",
    help="none: every step runs the whole model, as ROME does. exact: only what depends on the edit; the same numbers.",
)
@contrast_option
def main(
    model: str,
    steps: int,
    learning_rate: float,
    cache: str,
    contrast: bool | None,
    **given: Any,  # noqa: ANN401 - click gives options of any type
) -> None:
    """Measure ROME's edits of BUNDLE on records."""
    options = BenchOptions(**given)
    if options.threads:
        torch.set_num_threads(options.threads)
    contrasts = contrasts_of(Method(options.method), wanted=contrast)
    edit = EditConfig(prefix_cache=CACHES[cache], contrasts=contrasts, loss=ORACLE_LOSS)
    bundle, records = options.open(), options.read()
    refuse_edits(bundle, options.bundle)
    search = backprop_search(HostModel.load(bundle, model), BackpropConfig(steps, learning_rate), edit)
    bench_and_print(bundle, records, options.config(edit), options.out, resume=options.resume, foreign=search)
    click.echo("backward passes: one a step, in wall_s alone")


if __name__ == "__main__":
    main()
