"""Whether it would pay to spread a batch of edits over several layers (MEMIT): a bundle has one edit layer.

Usage: python -m scripts.experiments.memit_layers BUNDLE --data counterfact.json --json OUT

The source model in torch, FP32. Each fact's hidden state z behind BUNDLE's edit layer is searched once, by
backpropagation on the unedited model (`scripts.backprop_oracle`); all settings share it. Then a batch is written into
the edit layer alone, or into it and the layers below it, by MEMIT's least squares or EMMET's equality (Meng et al.
2023, Algorithm 1; Gupta et al. 2024), and the model is measured; the weights are restored, which a hash of all of them
proves, before the next setting. As in a bundle, no edit reaches the sink token. MEMIT's weight is relative to the
leverages k^T C^-1 k, as in `runtime.closed_form`: the same for every fact where the paper's, lambda C, is not. The
paper's 15,000 for GPT-J is .92 times the mean leverage of text's keys, which is the MLP's width; the file has the
facts' median leverages in that unit. For comparison the same deltas are also put through the product's gates.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from mobiedit.calibration.key_statistics import collect_key_statistics
from mobiedit.calibration.text import default_text
from mobiedit.export.configuration import ExportConfig
from mobiedit.runtime import Bundle, Method
from mobiedit.runtime.cli_support import CONTEXT_SETTINGS, ErrorCommand
from mobiedit.runtime.configuration import LossConfig
from mobiedit.runtime.decoder import Slots
from mobiedit.runtime.edit_set import EditSet
from mobiedit.runtime.editor import Workbench, fit_in
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.evaluation import EvaluationRecord, metrics
from mobiedit.runtime.evaluation.cached_reader import CachedReader
from mobiedit.runtime.files import require_place, storage_errors, write_atomic
from mobiedit.runtime.manifest import Manifest
from mobiedit.runtime.prompt_rows import EditRequest, PromptRows
from mobiedit.runtime.rank_one import solve_key, subject_key
from mobiedit.runtime.reader import Reader
from mobiedit.runtime.search import SearchResult, SearchTask
from scripts.support.backprop import BackpropConfig
from scripts.support.backprop_batch import backprop_batch
from scripts.support.bench_options import BenchOptions, bench_parameters, model_option
from scripts.support.command_line import arguments_of, numbers_above_0
from scripts.support.held_out import perplexity
from scripts.support.host_decoder import host_decoder
from scripts.support.host_model import HostModel, matching_checkpoint, refuse_edits
from scripts.support.layer_spread import Spread, Subjects, fingerprint, leverages_of, read_subjects, written
from scripts.support.sequence import Variant, mean
from scripts.support.tables import Cell, markdown_table, text_table

Floats = NDArray[np.float32]
_TOGETHER = 10  # facts whose searches are run at once


@dataclass(frozen=True)
class SearchedFacts:
    """N facts with what was searched for each on the unedited model.

    Attributes
    ----------
    deltas
        [N, D] what the hidden state of each shall gain behind the edit layer.
    subjects
        In the unedited model.
    """

    records: Sequence[EvaluationRecord]
    rows: Sequence[PromptRows]
    deltas: Floats
    subjects: Subjects

    def first(self, count: int) -> SearchedFacts:
        """Return the first facts."""
        keys = {layer: keys[:count] for layer, keys in self.subjects.keys.items()}
        subjects = Subjects(keys, self.subjects.hidden[:count])
        return SearchedFacts(self.records[:count], self.rows[:count], self.deltas[:count], subjects)


@dataclass(frozen=True)
class Lab:
    """The bundle, its source model in torch, and C^-1 [F, F] of the layers that may be written to."""

    bundle: Bundle
    host: HostModel
    statistics: dict[int, Floats]

    def reader(self, slots: Slots | None = None) -> Reader:
        """Return a reader of the host's weights as they are when it is asked."""
        bundle = self.bundle
        slots = slots or Slots.empty(1, bundle.manifest.shape)
        return Reader(host_decoder(self.host), bundle.tokenizer, bundle.manifest, slots)


@click.command(
    cls=ErrorCommand,
    context_settings=CONTEXT_SETTINGS,
    params=bench_parameters("method", "resume", "fluency_tokens", "limit", "seed"),
)
@model_option
@click.option("--at", default="10,100", help="Sizes of the batch; each is of the first records.")
@click.option("--depths", default="1,3,5", help="Over how many layers a batch is spread, the edit layer the last one.")
@click.option(
    "--weight",
    "weights",
    multiple=True,
    type=click.FloatRange(0, min_open=True),
    default=(0.01, 0.5),
    help="MEMIT's weight of text, relative to the leverages; may be repeated.",
)
@click.option(
    "--deltas",
    "known",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file (.npz) of what was searched: read where it is there, written as they end.",
)
def main(
    model: str,
    at: str,
    depths: str,
    weights: tuple[float, ...],
    known: Path | None,
    **given: Any,  # noqa: ANN401 - click gives options of any type
) -> None:
    """Write batches of edits into one or several layers of BUNDLE's source model."""
    options = BenchOptions(**given, method=Method.ROME, resume=False, fluency_tokens=0, limit=None, seed=0)
    require_place(options.out)
    counts, spreads = sorted(numbers_above_0(at, int)), sorted(numbers_above_0(depths, int))
    if options.threads:
        torch.set_num_threads(options.threads)
    bundle, data = options.open(), options.read()
    refuse_edits(bundle, options.bundle)
    last, manifest = bundle.manifest.edit_layer, bundle.manifest
    if max(spreads) > last + 1:
        raise RequestError(f"there are {last + 1} layers up to the edit layer: give --depths no number above that")
    began = time.perf_counter()
    lab = _lab(bundle, model, range(last + 1 - max(spreads), last + 1))
    whole = _searched(lab, data.part(options.skip, max(counts)), known)
    layers = [range(last + 1 - depth, last + 1) for depth in spreads]
    settings = {
        "base": manifest.base.name,
        "edit_layer": last,
        "precision": "fp32, in torch",
        "data_sha256": data.sha256,
        "search": asdict(BackpropConfig()),
        "median_leverage_by_text's": _leverages(lab, whole),
        "search_seconds": round(time.perf_counter() - began),
    }
    document = {"command": f"python -m scripts.experiments.memit_layers {arguments_of(click.get_current_context())}"}
    rows: list[dict[str, Cell]] = []
    for count in counts:
        for row in _measured(lab, whole.first(count), [s for each in layers for s in _settings(each, weights)]):
            rows.append({"edits": len(whole.first(count).records), **row})
            text = json.dumps({**document, "settings": settings, "rows": rows}, indent=1)
            write_atomic(options.out, text.encode(), mode=None)
            tqdm.write(text_table(rows[-1:]))
    click.echo(markdown_table(rows))


def _lab(bundle: Bundle, model: str, layers: Sequence[int]) -> Lab:
    checkpoint = matching_checkpoint(bundle, model)
    sink = bundle.manifest.sink_token
    collected = collect_key_statistics(
        checkpoint.model, checkpoint.tokenizer, layers, sink, default_text(), ExportConfig.dynamic_multiplier
    )
    return Lab(bundle, HostModel.of(bundle, checkpoint), {n: each.inverse_covariance for n, each in collected.items()})


def _searched(lab: Lab, records: Sequence[EvaluationRecord], known: Path | None) -> SearchedFacts:
    """Search each fact's delta on the unedited model; those in the file ``known`` are taken from there."""
    bundle, rome = lab.bundle, Variant(Method.ROME)
    last = bundle.manifest.edit_layer
    bench = replace(rome.workbench(bundle), inverse_covariance=lab.statistics[last])
    requests = [record.request for record in records]
    names = [_name(each, bundle.manifest, bench.config.loss) for each in requests]
    found = _read(known) if known and known.exists() else {}
    tasks = {n: _task(bundle, bench, each) for n, each in zip(names, requests, strict=True) if n not in found}
    # Like lengths together: rows are padded to one length.
    missing = sorted(tasks, key=lambda name: tasks[name].problem.window.hidden.shape[1])
    for start in tqdm(range(0, len(missing), _TOGETHER), unit="searches"):
        part = missing[start : start + _TOGETHER]
        deltas = backprop_batch([tasks[name] for name in part], lab.host, BackpropConfig(), bench.config.loss)
        found.update(zip(part, deltas, strict=True))
        if known:
            held = io.BytesIO()
            np.savez(held, **found)
            write_atomic(known, held.getvalue(), mode=None)
    rows = [bench.rows_of(request) for request in requests]
    deltas = np.stack([found[name] for name in names])
    return SearchedFacts(records, rows, deltas, read_subjects(lab.host, rows, list(lab.statistics)))


def _task(bundle: Bundle, bench: Workbench, request: EditRequest) -> SearchTask:
    """Return what the search of a lone linear edit works on."""
    tasks: list[SearchTask] = []

    def keep(task: SearchTask) -> SearchResult:
        tasks.append(task)
        return SearchResult(np.zeros_like(task.value), 0, False, ())

    empty = EditSet((), bundle.manifest.slots, bundle.manifest.shape)
    Variant(Method.ROME).teach(replace(bench, search=keep), request, empty)
    return tasks[0]


def _name(request: EditRequest, manifest: Manifest, loss: LossConfig) -> str:
    """Return what names a search: a hash of all that its delta depends on."""
    settings = (manifest.edit_base, asdict(BackpropConfig()), asdict(loss))
    text = json.dumps([*settings, request.prompt, request.subject, request.target])
    return hashlib.sha256(text.encode()).hexdigest()


def _read(known: Path) -> dict[str, Floats]:
    try:
        with storage_errors(f"read {known}"), known.open("rb") as file, np.load(file) as held:
            return dict(held)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RequestError(f"{known} is damaged, or no file of deltas: delete it, or name another file") from error


def _leverages(lab: Lab, batch: SearchedFacts) -> dict[int, float]:
    """Return the facts' median leverage at each layer, in units of the mean one of text's keys: the MLP's width."""
    width = lab.bundle.manifest.shape.mlp_width
    keys = {layer: leverages_of(batch.subjects.mean_keys(layer), c)[1] for layer, c in lab.statistics.items()}
    return {layer: round(float(np.median(each)) / width, 3) for layer, each in keys.items()}


def _settings(layers: Sequence[int], weights: Sequence[float]) -> list[Spread]:
    return [*(Spread(layers, Method.MEMIT, weight) for weight in weights), Spread(layers, Method.EMMET, min(weights))]


def _measured(lab: Lab, batch: SearchedFacts, spreads: Sequence[Spread]) -> Iterator[dict[str, Cell]]:
    """Yield the figures of the unedited model, of gated edits, and of each way to write the batch."""
    before = CachedReader(lab.reader())
    unedited = perplexity(before.reader, lab.bundle.tokenizer)
    former = fingerprint(lab.host)

    def told(reader: Reader, **row: Cell) -> dict[str, Cell]:
        scores = _scores(CachedReader(reader), before, batch.records)
        return {**row, **scores, "perplexity": perplexity(reader, lab.bundle.tokenizer) / unedited}

    # Both readers read the same weights. All that is asked of `before` later is asked here, and kept from then on.
    yield told(before.reader, method="unedited", layers=None, weight=None, missing=1.0)
    last = lab.bundle.manifest.edit_layer
    yield told(lab.reader(_gated(lab, batch).slots), method="gated", layers=str(last), weight=None, missing=None)
    targets = batch.subjects.hidden + batch.deltas
    for spread in spreads:
        with written(lab.host, batch.rows, targets, lab.statistics, spread, batch.subjects):
            names = f"{spread.layers[0]} to {last}" if len(spread.layers) > 1 else str(last)
            weight = spread.weight if spread.method is Method.MEMIT else None
            missing = _missing(lab, batch, targets)
            row = told(lab.reader(), method=spread.method.value, layers=names, weight=weight, missing=missing)
        if fingerprint(lab.host) != former:
            raise AssertionError("the weights are not those of before")
        yield row


def _gated(lab: Lab, batch: SearchedFacts) -> EditSet:
    """Return the batch as the product's gated edits, one after the other, each with its own delta."""
    manifest, statistics = lab.bundle.manifest, lab.statistics[lab.bundle.manifest.edit_layer]
    edits = EditSet((), len(batch.records), manifest.shape)
    for keys, delta in zip(batch.subjects.keys[manifest.edit_layer], batch.deltas, strict=True):
        key = subject_key(keys)
        new, _ = fit_in(edits, key, *solve_key(key, statistics), Method.GATED, keys)
        edits = edits.extended([replace(new, delta=delta)])
    return edits


def _missing(lab: Lab, batch: SearchedFacts, targets: Floats) -> float:
    """Return the median part of a delta that the bare prompt's hidden state still lacks."""
    gap = targets - read_subjects(lab.host, batch.rows, [], most=1).hidden
    return float(np.median(np.linalg.norm(gap, axis=1) / np.linalg.norm(batch.deltas, axis=1)))


def _scores(now: CachedReader, before: CachedReader, records: Sequence[EvaluationRecord]) -> dict[str, Cell]:
    return {
        "efficacy": mean([float(metrics.efficacy(record, now, before)) for record in records]),
        "exact match": mean([float(metrics.exact_match(record, now)) for record in records]),
        "paraphrase": mean([metrics.paraphrase(record, now) for record in records]),
        "neighbourhood": mean([metrics.neighbourhood(record, now, before) for record in records]),
        "argmax unchanged": mean([metrics.argmax_unchanged(record, now, before) for record in records]),
    }


if __name__ == "__main__":
    main()
