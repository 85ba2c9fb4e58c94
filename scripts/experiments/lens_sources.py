"""What a lens has to be fitted on: plain text alone, the project's relations, or facts that are given.

Usage: python -m scripts.experiments.lens_sources BUNDLE --data counterfact.json --facts zsre.json

BUNDLE's lens is fitted again on each of them, with as many rows each, and records are edited with it, which should not
be among the facts. Of plain text a row is a random place, a random token before it as the subject, and a random span of
other text as the target. The others are the exporter's: a tenth of their rows is of that kind too, and of the rest
three tenths have such a target. "Held-out NLL" is of rows of the same kind, so it compares no sources.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm import tqdm

from mobiedit.calibration.facts import FactMix
from mobiedit.calibration.key_statistics import collect_key_statistics
from mobiedit.calibration.lens import FittedLens
from mobiedit.calibration.text import default_text
from mobiedit.export.checkpoint import Checkpoint
from mobiedit.export.configuration import ExportConfig
from mobiedit.export.lens_stage import fit_export_lens
from mobiedit.runtime import Bundle, EditConfig
from mobiedit.runtime.bundle_layout import EDITS, LENS
from mobiedit.runtime.bundle_writer import save_tensors
from mobiedit.runtime.evaluation import MeasuredRecord
from scripts.support.bench_options import model_option
from scripts.support.experiment import Experiment, experiment_command, new_figure
from scripts.support.figures import row_of
from scripts.support.host_model import matching_checkpoint
from scripts.support.tables import Cell

TITLE = "What the lens is fitted on"


@experiment_command(limit=20)
@model_option
@click.option("--facts", type=click.Path(path_type=Path), help="Evaluation records to fit a third lens on.")
@click.option("--rows", type=click.IntRange(1), default=1500, help="Facts that the fitting sees; the exporter's: 6000.")
def main(model: str, facts: Path | None, rows: int, **given: Any) -> None:  # noqa: ANN401 - click's options
    """Edit records of BUNDLE with lenses that were fitted on different facts."""
    experiment = Experiment(**given)
    if experiment.threads:
        torch.set_num_threads(experiment.threads)
    bundle = experiment.open()
    manifest, checkpoint = bundle.manifest, matching_checkpoint(bundle, model)
    layers, multiplier = [manifest.edit_layer], ExportConfig.dynamic_multiplier
    collected = collect_key_statistics(
        checkpoint.model, checkpoint.tokenizer, layers, manifest.sink_token, default_text(), multiplier
    )
    inverse_covariance = collected[manifest.edit_layer].inverse_covariance
    sources: dict[str, tuple[FactMix, Path | None]] = {
        "text alone": (FactMix(plain=1.0), None),
        "relations": (FactMix(), None),
        **({"facts": (FactMix(), facts)} if facts else {}),
    }
    table: list[dict[str, Cell]] = []
    measured: dict[str, list[MeasuredRecord]] = {}
    for name, (mix, path) in sources.items():
        config = ExportConfig(model, bundle.path, facts=path, lens_rows=rows, slots=manifest.slots)
        lens = _fit(bundle, checkpoint, inverse_covariance, config, mix)
        measured[name] = _edited(experiment, bundle, lens, name)
        _, *losses = lens.evidence["held_out_nll"]
        nll = {"held-out NLL": losses[-1], "fitting, s": lens.evidence["seconds"]}
        table.append({"fitted on": name, "rows": lens.evidence["rows"], **nll, **row_of(measured[name])})
        experiment.write("lens_sources", TITLE, bundle, table, _plot(measured))


def _fit(
    bundle: Bundle, checkpoint: Checkpoint, inverse_covariance: NDArray[np.float32], config: ExportConfig, mix: FactMix
) -> FittedLens:
    """Fit a lens of the bundle's edit layer as the exporter does; ``inverse_covariance`` is C^-1 [F, F]."""
    with tqdm(total=config.lens_rows, desc="lens", unit="fact") as bar:
        return fit_export_lens(
            checkpoint,
            bundle.decoder,
            bundle.tokenizer,
            bundle.manifest.edit_layer,
            inverse_covariance,
            default_text(),
            bundle.manifest.row_prefixes,
            config,
            bar.update,
            mix,
        )


def _edited(experiment: Experiment, bundle: Bundle, lens: FittedLens, name: str) -> list[MeasuredRecord]:
    """Edit the records on a copy of the bundle that has this lens and shares its other files."""
    with tempfile.TemporaryDirectory(dir=bundle.path.resolve().parent, prefix=".lens-") as folder:
        copy = Path(folder) / "bundle"
        shutil.copytree(bundle.path, copy, ignore=shutil.ignore_patterns(EDITS, LENS), copy_function=os.link)
        save_tensors(copy / LENS, lens.tensors)
        other = experiment.open(copy, verify=False)
        return [experiment.measure(other, each, EditConfig()) for each in tqdm(experiment.records(), desc=name)]


def _plot(measured: dict[str, Sequence[MeasuredRecord]]) -> Figure:
    figure, (forwards, start) = new_figure(TITLE, 2)
    for name, records in measured.items():
        counts = sorted(record.cost.forwards for record in records if record.cost)
        forwards.plot(counts, [(i + 1) / len(counts) for i in range(len(counts))], label=name)
        # The lens's own part: its start and its steps, before the first epoch of differences.
        starts = sorted(record.looks[1][2] for record in records if len(record.looks) > 1)
        start.plot(starts, [(i + 1) / len(starts) for i in range(len(starts))], label=name)
    forwards.set(xlabel="forwards", ylabel="share of edits that took no more", xscale="log")
    start.set(xlabel="target's probability at the lens's start", ylabel="share of edits with no more")
    forwards.legend()
    return figure


if __name__ == "__main__":
    main()
