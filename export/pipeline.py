"""The export, stage by stage: from a checkpoint to a bundle."""

from __future__ import annotations

import gc
import importlib.metadata
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mobiedit.calibration.compact_statistics import affordable_rank
from mobiedit.calibration.facts import facts_of_file
from mobiedit.calibration.key_statistics import KeyStatistics
from mobiedit.calibration.sink import choose_sink
from mobiedit.calibration.text import default_text, held_out_text, read_text, spread
from mobiedit.runtime.bundle_layout import EMBEDDING, KEY_STATISTICS, LENS, TOKENIZER
from mobiedit.runtime.bundle_parts import cpu_graphs, cpu_openers, load_parts
from mobiedit.runtime.bundle_writer import BundleWriter, save_tensors
from mobiedit.runtime.configuration import ExecutionConfig
from mobiedit.runtime.costs import CostMeter
from mobiedit.runtime.decoder import Decoder, DecoderParts, Slots
from mobiedit.runtime.execution import Runnable
from mobiedit.runtime.files import storage_errors
from mobiedit.runtime.manifest import SCHEMA_VERSION, Manifest, to_json
from mobiedit.runtime.staging import ONE_BY_ONE, GraphStages
from mobiedit.runtime.tokenizer import Tokenizer

from .canaries import choose_canaries
from .check import Comparison, Reference, accuracy_notes, compare, require_close, require_exact
from .checkpoint import Checkpoint, find_source, load_checkpoint, read_config, shape_of
from .configuration import ExportConfig, Precision, Target
from .edit_layer import predict_layer
from .error_report import layer_errors, require_report, write_report
from .fp32_stage import write_fp32
from .layer_stage import MeasuredLayer, measure_layer, write_key_statistics
from .lens_stage import fit_export_lens
from .npu_check import require_simulator
from .npu_stage import prepare_for_npu
from .progress import Stages
from .quantise_stage import QuantiseStage
from .rotation_stage import rotate_checkpoint
from .token_rows import half_token_rows

ROW_PREFIXES = (
    "{}",
    "The weather was fine. {}",
    "In the morning, they talked. {}",
    "According to the report, {}",
    "I think that you know. {}",
    "Because of this, {}",
)
"""Rewriting rows of an edit: with the kept row, the paper's batch of 7."""

MASK_VALUE = -100.0
"""What the attention mask adds: enough to hide a token, small enough for a 16-bit range."""

_SINK_LINES, _CHECK_LINES, _CHECK_TOKENS = 12, 32, 64


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote: the comparisons with the source model, and what the user should know."""

    manifest: Manifest
    fp32: Comparison
    written: Comparison
    notes: tuple[str, ...]


def export_bundle(config: ExportConfig, stages: Stages | None = None) -> ExportReport:
    """Export a model.

    Raises
    ------
    ExportError
        When the model cannot be exported, or the written graphs are off; nothing is left behind.
    RequestError
        When an option does not fit the model.
    BundleError
        When the place is taken.
    StorageError
        When the disk refuses.
    """
    stages = stages or Stages()
    source = find_source(config.model, config.revision, trust_remote_code=config.trust_remote_code)
    model_config = read_config(source)
    shape = shape_of(model_config)
    predict_layer(shape, config.layer)  # a layer that is not there is refused before any work
    affordable_rank(shape.mlp_width, config.key_statistics_bytes)  # so is a budget that holds nothing
    if config.target is Target.QNN:
        require_simulator()
    if config.report:
        require_report(config.report)
    lines = read_text(config.calibration_text) if config.calibration_text else default_text()
    if config.facts:
        facts_of_file(config.facts)  # a bad file is refused before any work
    with BundleWriter(config.out, force=config.force) as writer, storage_errors(f"write {config.out}"):
        with stages.stage("load the model"):
            checkpoint = load_checkpoint(source, model_config)
        rotation: dict[str, Any] = {}
        if config.rotated:
            with stages.stage("rotate the residual stream"):
                rotated = rotate_checkpoint(checkpoint)
            checkpoint, rotation = rotated.checkpoint, {"rotation": rotated.evidence}
        return _Export(config, checkpoint, rotation, lines, writer, stages).run()


class _Export:
    """One export in progress: the values that its stages share."""

    def __init__(
        self,
        config: ExportConfig,
        checkpoint: Checkpoint,
        rotation: dict[str, Any],
        lines: Sequence[str],
        writer: BundleWriter,
        stages: Stages,
    ) -> None:
        self._config = config
        self._checkpoint = checkpoint
        self._rotation = rotation
        self._lines = lines
        self._writer = writer
        self._stages = stages
        self._empty = Slots.empty(config.slots, checkpoint.shape)
        self._layer: int  # known once it is measured, as are its statistics
        self._keys: dict[str, Any]

    def run(self) -> ExportReport:
        model, tokenizer = self._checkpoint.model, self._checkpoint.tokenizer
        with self._stages.stage("choose the sink token"):
            sink = choose_sink(model, tokenizer, spread(self._lines, _SINK_LINES))
        tokenizer.backend_tokenizer.save(str(self._writer.folder / TOKENIZER))
        if self._config.precision is not Precision.FP32:
            save_tensors(self._writer.folder / EMBEDDING, half_token_rows(self._checkpoint))
        layer = self._measure_layer(sink.token)
        with _temporary_folder("work-", self._writer.folder) as work, self._fp32_folder() as fp32_folder:
            source = self._write_fp32(fp32_folder, sink.token)
            lens = self._fit_lens(source, layer.statistics)
            reference = self._read_reference(work, sink.token)
            if self._config.report is None:
                model.to("meta")  # it is not needed any more: its memory is the graphs' from here on
                gc.collect()  # what traced and fitted it held its weights in cycles
            fp32 = self._check_fp32(fp32_folder, reference)
            ranges = {}
            if self._config.precision is not Precision.FP32:
                ranges = self._quantise(fp32_folder)
            written, canaries = self._check_written(fp32, reference, sink.token)
        folder, rows, context = self._writer.folder, len(ROW_PREFIXES) + 1, self._checkpoint.shape.context
        npu = prepare_for_npu(folder, self._config, rows, context, self._stages)
        checks = {"fp32": fp32.to_dict(), "written": written.to_dict(), "sink_nll": sink.evidence}
        checks["npu_cosine"] = npu.cosines
        statistics = {**self._keys, **ranges, **self._rotation, "layer": layer.evidence, "lens": lens}
        manifest = replace(self._manifest(sink.token, canaries, statistics, checks), contexts=npu.contexts)
        with self._stages.stage("write the manifest"):
            self._writer.finish(to_json(manifest))
        notes = (*layer.notes, *accuracy_notes(written, self._config.precision), *npu.notes)
        return ExportReport(manifest, fp32, written, notes)

    @contextmanager
    def _fp32_folder(self) -> Iterator[Path]:
        """Give the folder of the FP32 graphs: the bundle itself, or one that is gone once they are quantised."""
        if self._config.precision is Precision.FP32:
            yield self._writer.folder
            return
        with _temporary_folder("fp32-", self._writer.folder) as folder:
            yield folder

    def _write_fp32(self, folder: Path, sink: int) -> DecoderParts:
        """Write the FP32 graphs; return what a decoder is loaded from, with the source model's own ones instead."""
        config = self._config
        half_rows = self._writer.folder / EMBEDDING
        graphs = write_fp32(self._checkpoint, self._layer, config.slots, sink, folder, half_rows, self._stages)
        return self._parts(folder, graphs)

    def _quantise(self, work: Path) -> dict[str, Any]:
        """Write the bundle's graphs from the FP32 ones; return what the manifest's statistics say of them."""
        return QuantiseStage(
            work,
            self._writer.folder,
            self._config,
            self._layer,
            self._empty,
            self._parts,
            self._encode,
            self._lines,
            self._stages,
        ).run()

    def _check_fp32(self, folder: Path, reference: Reference) -> Comparison:
        """Compare the FP32 graphs with the source model, one of them in memory at a time."""
        openers = cpu_openers(folder, ExecutionConfig(), fold_weights=False, packed=False)
        stages = GraphStages(openers, ONE_BY_ONE)
        fp32 = self._compare("check the FP32 graphs", self._parts(folder, stages.graphs()), reference)
        stages.close()
        require_exact(fp32)
        return fp32

    def _check_written(self, fp32: Comparison, reference: Reference, sink: int) -> tuple[Comparison, tuple[str, ...]]:
        """Compare the bundle's graphs with the source model and choose the canaries; no session outlives this call."""
        folder, precision, written = self._writer.folder, self._config.precision, fp32
        parts = self._parts(folder)
        if precision is not Precision.FP32:
            written = self._compare(f"check the {precision} graphs", parts, reference)
            require_close(written, precision, self._config.budget)
        if self._config.report:
            self._report(self._config.report, parts, reference, sink, written)
        with self._stages.stage("choose the canaries"):
            canaries = choose_canaries(Decoder(parts, CostMeter()), self._empty, Tokenizer(folder / TOKENIZER))
        return written, canaries

    def _read_reference(self, work: Path, sink: int) -> Reference:
        texts = [ids for ids in self._encode(held_out_text()[:_CHECK_LINES]) if len(ids) > 1]
        with self._stages.stage("read held-out text", len(texts)) as advance:
            return Reference(work, texts).read(self._checkpoint.model, sink, advance)

    def _compare(self, title: str, parts: DecoderParts, reference: Reference) -> Comparison:
        with self._stages.stage(title, len(reference.texts)) as advance:
            return compare(Decoder(parts, CostMeter()), self._empty, reference, advance)

    def _report(self, folder: Path, parts: DecoderParts, reference: Reference, sink: int, written: Comparison) -> None:
        """Write the error of each layer."""
        with self._stages.stage("report the error of each layer", len(reference.texts)) as advance:
            model, empty = self._checkpoint.model, self._empty
            errors = layer_errors(parts, self._writer.folder, model, sink, empty, reference.texts, advance)
        facts = {"rotated": self._config.rotated, "check": written.to_dict()}
        write_report(folder, str(self._config.precision), errors, facts)

    def _measure_layer(self, sink: int) -> MeasuredLayer:
        """Choose the edit layer and write its key statistics."""
        folder = self._writer.folder
        tokenizer = Tokenizer(folder / TOKENIZER)
        layer = measure_layer(self._checkpoint, tokenizer, sink, self._lines, ROW_PREFIXES, self._config, self._stages)
        self._layer = layer.index
        self._keys = write_key_statistics(folder / KEY_STATISTICS, layer.statistics, self._config, self._stages)
        return layer

    def _fit_lens(self, source: DecoderParts, statistics: KeyStatistics) -> dict[str, Any]:
        """Fit and write the lens; return what the manifest says of it."""
        folder = self._writer.folder
        with self._stages.stage("fit the lens", self._config.lens_rows) as advance:
            lens = fit_export_lens(
                self._checkpoint,
                Decoder(source, CostMeter()),
                Tokenizer(folder / TOKENIZER),
                self._layer,
                statistics.inverse_covariance,
                self._lines,
                ROW_PREFIXES,
                self._config,
                advance,
            )
        save_tensors(folder / LENS, lens.tensors)
        return {"bytes": (folder / LENS).stat().st_size, **lens.evidence}

    def _parts(self, folder: Path, graphs: Mapping[str, Runnable] | None = None) -> DecoderParts:
        """Return what a decoder is made of; the graphs are the folder's, open, if no others are given."""
        graphs = graphs or cpu_graphs(folder, ExecutionConfig(), fold_weights=True)
        return load_parts(folder, self._checkpoint.shape, self._layer, MASK_VALUE, graphs)

    def _encode(self, lines: Sequence[str]) -> list[list[int]]:
        tokenizer = self._checkpoint.tokenizer
        return [tokenizer(line, add_special_tokens=False).input_ids[:_CHECK_TOKENS] for line in lines]

    def _manifest(
        self, sink: int, canaries: tuple[str, ...], statistics: dict[str, Any], checks: dict[str, Any]
    ) -> Manifest:
        config, checkpoint = self._config, self._checkpoint
        tools = ("mobiedit", "torch", "transformers", "onnx", "onnxruntime")
        return Manifest(
            schema_version=SCHEMA_VERSION,
            base=checkpoint.base,
            shape=checkpoint.shape,
            edit_layer=self._layer,
            precision=str(config.precision),
            target=str(config.target),
            sink_token=sink,
            eos_tokens=checkpoint.eos_tokens,
            mask_value=MASK_VALUE,
            slots=config.slots,
            row_prefixes=ROW_PREFIXES,
            canaries=canaries,
            statistics={**statistics, "multiplier": config.dynamic_multiplier},
            checks=checks,
            tools={name: importlib.metadata.version(name) for name in tools},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            files=self._writer.entries(),
        )


@contextmanager
def _temporary_folder(prefix: str, parent: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as name:
        yield Path(name)
