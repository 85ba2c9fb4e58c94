"""The export's stage that writes the bundle's graphs in its precision, from the FP32 ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobiedit.calibration.activation_ranges import RangeConfig, RangeMethod, TensorRange
from mobiedit.calibration.graph_inputs import RecordedInputs, record_graph_inputs
from mobiedit.calibration.text import between, spread
from mobiedit.runtime.bundle_layout import CONSTANTS, graph_file
from mobiedit.runtime.decoder import DecoderParts, Slots

from .configuration import WEIGHT_ONLY, ExportConfig, Precision
from .conversion import CONVERTED, convert_graphs
from .matmul_groups import MatMulGroup, matmul_groups
from .mixed_precision import EightBits, choose_eight_bits, shares
from .progress import Stages
from .range_record import write_ranges
from .static_quantisation import observe_ranges, quantise_static, write_static

_BUDGET_LINES = 16  # of calibration text, on which groups at 8 bits are measured

Ranges = dict[str, dict[str, TensorRange]]


@dataclass(frozen=True)
class QuantiseStage:
    """Writes prefix, suffix and head; constants and edit layer are the FP32 ones.

    Attributes
    ----------
    work, folder
        Where the FP32 graphs are, and the bundle.
    config
        The export's.
    layer
        The edit layer.
    slots
        No edits.
    open_parts
        A folder of graphs to a decoder's parts.
    encode
        Lines of text to tokens.
    lines
        Calibration text.
    """

    work: Path
    folder: Path
    config: ExportConfig
    layer: int
    slots: Slots
    open_parts: Callable[[Path], DecoderParts]
    encode: Callable[[Sequence[str]], list[list[int]]]
    lines: Sequence[str]
    stages: Stages

    def run(self) -> dict[str, Any]:
        """Write the graphs and return what the manifest's statistics say of them."""
        for path in (self.work / CONSTANTS, *self.work.glob(f"{graph_file('edit')}*")):
            shutil.copy(path, self.folder)
        if self.config.precision is Precision.W8A16:
            return self._sixteen_bits()
        if self.config.precision in (Precision.W8A8, Precision.MIXED):
            return self._eight_bits()
        with self.stages.stage("convert the graphs", len(CONVERTED)) as advance:
            convert_graphs(self.work, self.folder, self.config.precision, self.config.block, advance)
        return {"block": self.config.block} if self.config.precision in WEIGHT_ONLY else {}

    def _sixteen_bits(self) -> dict[str, Any]:
        inputs, samples = self._record()
        config, ranges = RangeConfig(self.config.ranges or RangeMethod.MIN_MAX), {}
        with self.stages.stage("quantise the graphs", len(CONVERTED)) as advance:
            for graph in CONVERTED:
                source, target = self._paths(graph)
                ranges[graph] = quantise_static(source, target, getattr(inputs, graph), config)
                advance(1)
        return {"ranges": write_ranges(self.folder, ranges, config.method, samples)}

    def _eight_bits(self) -> dict[str, Any]:
        inputs, samples = self._record()
        wide = RangeConfig(self.config.ranges or RangeMethod.MIN_MAX)
        # A step of 8 bits is 257 times as long: what is clipped has to be weighed against it.
        narrow = RangeConfig(self.config.ranges or RangeMethod.MSE, bits=8)
        first = {"prefix": 0, "suffix": self.layer + 1, "head": 0}
        groups = [each for graph in CONVERTED for each in matmul_groups(self._paths(graph)[0], first[graph])]
        ranges: Ranges = {}
        narrow_ranges: Ranges = {}
        with self.stages.stage("choose activation ranges", len(CONVERTED)) as advance:
            for graph in CONVERTED:
                tensors = {name for each in groups if each.graph == graph for name in each.tensors}
                ranges[graph], narrow_ranges[graph] = observe_ranges(
                    self._paths(graph)[0], getattr(inputs, graph), ((wide, None), (narrow, tensors))
                )
                advance(1)
        chosen = self._chosen(groups, narrow_ranges)
        with self.stages.stage("quantise the graphs", len(CONVERTED)) as advance:
            for graph in CONVERTED:
                eight = [each for each in chosen.groups if each.graph == graph]
                write_static(*self._paths(graph), ranges[graph], eight, narrow_ranges[graph])
                advance(1)
        stated = write_ranges(self.folder, ranges, wide.method, samples, _at_eight_bits(chosen.groups, narrow_ranges))
        return {"ranges": stated, "activations": {"method": str(narrow.method), **chosen.evidence}}

    def _chosen(self, groups: Sequence[MatMulGroup], ranges: Ranges) -> EightBits:
        if self.config.precision is Precision.W8A8:
            return EightBits(tuple(groups), shares(groups, groups))
        texts = self.encode(between(self.lines, _BUDGET_LINES))
        with self.stages.stage("measure sensitivities", len(groups) + len(groups).bit_length()) as advance:
            parts = self.open_parts(self.work)
            return choose_eight_bits(parts, self.work, groups, ranges, texts, self.slots, self.config.budget, advance)

    def _record(self) -> tuple[RecordedInputs, int]:
        """Return what the graphs are fed on calibration text, and of how many lines."""
        texts = self.encode(spread(self.lines, self.config.samples))
        with self.stages.stage("record activations", len(texts)) as advance:
            parts = self.open_parts(self.work)
            inputs = record_graph_inputs(parts, texts, self.config.slots, self.work, advance=advance)
        return inputs, len(texts)

    def _paths(self, graph: str) -> tuple[Path, Path]:
        name = graph_file(graph)
        return self.work / name, self.folder / name


def _at_eight_bits(chosen: Sequence[MatMulGroup], ranges: Ranges) -> Ranges:
    """Return the ranges of the tensors that have 8 bits somewhere."""
    kept: Ranges = {graph: {} for graph in ranges}
    for group in chosen:
        kept[group.graph].update({name: ranges[group.graph][name] for name in group.tensors})
    return kept
