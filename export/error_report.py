"""How far the written graphs are from the FP32 model behind each layer: a table, a plot and the figures."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import nn

from mobiedit.runtime.bundle_layout import SEGMENT_OUTPUTS, graph_file
from mobiedit.runtime.costs import CostMeter
from mobiedit.runtime.decoder import Decoder, DecoderParts, LayerCache, Slots
from mobiedit.runtime.errors import ExportError, RequestError
from mobiedit.runtime.execution import Feeds, Fetched
from mobiedit.runtime.files import write_atomic
from mobiedit.runtime.generation import Generator

from .static_quantisation import in_memory_session

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class LayerError:
    """The error behind a layer, or of the head's logits.

    Attributes
    ----------
    layer
        The decoder layer, or ``head``.
    cosine
        Of the vectors with the FP32 model's, mean over tokens.
    sqnr_db
        Signal-to-quantisation-noise ratio, dB: 10 log10(sum of squares / sum of squared errors), over all tokens.
    """

    layer: int | str
    cosine: float
    sqnr_db: float


class _Sums:
    """What the errors of one place are computed from, text by text."""

    def __init__(self) -> None:
        self.cosines: list[Floats] = []
        self.signal = self.noise = 0.0

    def add(self, wanted: Floats, found: Floats) -> None:
        norms = np.linalg.norm(wanted, axis=-1) * np.linalg.norm(found, axis=-1)
        self.cosines.append((wanted * found).sum(axis=-1) / norms)
        self.signal += float(np.square(wanted, dtype=np.float64).sum())
        self.noise += float(np.square(wanted - found, dtype=np.float64).sum())

    def error(self, layer: int | str) -> LayerError:
        # Graphs that are exact have no noise: FP32's resolution stands for it, so that the figure is finite.
        noise = max(self.noise, self.signal * np.finfo(np.float32).eps ** 2)
        sqnr = 10 * np.log10(self.signal / noise) if self.signal else 0.0
        return LayerError(layer, float(np.concatenate(self.cosines).mean()), float(sqnr))


class TappedSegment:
    """A decoder segment that keeps the residual stream behind each of its layers but the edit layer.

    Attributes
    ----------
    streams
        What the last run had, [B, T, D], layer by layer.
    """

    def __init__(self, path: Path, width: int) -> None:
        model = onnx.load(path, load_external_data=False)
        self.name = path.name
        self.inputs = tuple(value.name for value in model.graph.input)
        self.outputs = tuple(value.name for value in model.graph.output)
        self.streams: list[Floats] = []
        # The norms in front of attention, in front of the MLP, of the next layer: each second one is behind a layer.
        self._taps = _norm_inputs(model.graph, width)[2::2]
        model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in self._taps)
        self._session = in_memory_session(model, path.parent, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)

    def run(self, feeds: Feeds, meter: CostMeter | None = None) -> Fetched:
        """Evaluate the segment."""
        values = self._session.run([*self.outputs, *self._taps], feeds)
        self.streams = values[len(self.outputs) :]
        return dict(zip(self.outputs, values, strict=False))

    def placement(self) -> dict[str, int]:
        """Return nothing: it runs on the CPU alone."""
        return {}


@torch.no_grad()
def layer_errors(
    parts: DecoderParts,
    folder: Path,
    model: nn.Module,
    sink: int,
    slots: Slots,
    texts: Sequence[Sequence[int]],
    advance: Callable[[int], None] = lambda texts: None,
) -> list[LayerError]:
    """Return the errors of the residual stream behind each decoder layer, and of the logits.

    Parameters
    ----------
    parts
        The written graphs in sessions; the segments are replaced by tapped ones.
    folder
        Where the written graphs are.
    model
        The FP32 model, which reads each text behind the sink token.
    """
    shape = parts.shape
    prefix, suffix = (TappedSegment(folder / graph_file(name), shape.width) for name in SEGMENT_OUTPUTS)
    edited: list[Floats] = []

    class Tapped(Decoder):
        def run_suffix(self, hidden: Floats, cache: LayerCache) -> tuple[Floats, tuple[Floats, ...]]:
            edited[:] = [hidden]
            return super().run_suffix(hidden, cache)

    generator = Generator(Tapped(replace(parts, prefix=prefix, suffix=suffix), CostMeter()), slots)
    wanted: list[Floats] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, out: wanted.append((out if torch.is_tensor(out) else out[0]).numpy()))
        for layer in model.model.layers
    ]
    sums = [_Sums() for _ in range(shape.n_layers + 1)]
    try:
        for ids in texts:
            wanted.clear()
            logits = model(torch.tensor([[sink, *ids]])).logits[0, 1:].numpy()
            found = generator.all_logits(ids)
            streams = [*prefix.streams, *edited, *suffix.streams]
            for place, reference, stream in zip(sums, wanted, streams, strict=False):
                place.add(reference[0, 1:], stream[0])
            sums[-1].add(logits, found)
            advance(1)
    finally:
        for hook in hooks:
            hook.remove()
    return [place.error(index if index < shape.n_layers else "head") for index, place in enumerate(sums)]


def require_report(folder: Path) -> None:
    """Refuse a report that could not be written, before any work.

    Raises
    ------
    ExportError
        When matplotlib is missing.
    RequestError
        When the folder is a file.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ExportError(
            'a report needs matplotlib, which is not installed: run `pip install ".[report]"` in a clone of the '
            "repository, or leave --report out"
        )
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"--report {folder} is a file: name a folder")


def write_report(folder: Path, precision: str, errors: Sequence[LayerError], facts: dict[str, Any]) -> None:
    """Write ``report.json``, ``report.md`` and ``report.svg``.

    Parameters
    ----------
    facts
        What the JSON says beside the errors.

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    from .error_plot import draw_errors  # a host without matplotlib exports all the same

    folder.mkdir(parents=True, exist_ok=True)
    document = {"precision": precision, **facts, "layers": [asdict(each) for each in errors]}
    write_atomic(folder / "report.json", (json.dumps(document, indent=1) + "\n").encode(), None)
    write_atomic(folder / "report.md", _markdown(precision, errors).encode(), None)
    write_atomic(folder / "report.svg", draw_errors(precision, errors), None)


def _markdown(precision: str, errors: Sequence[LayerError]) -> str:
    title = f"Error of the {precision} graphs against FP32 on held-out text: the residual stream behind each layer"
    rows = [f"| {each.layer} | {each.cosine:.6f} | {each.sqnr_db:.1f} |" for each in errors]
    return "\n".join([title, "", "| layer | cosine | SQNR, dB |", "| --- | --- | --- |", *rows, ""])


def _norm_inputs(graph: onnx.GraphProto, width: int) -> list[str]:
    """Return what the norms of the residual stream are fed; those of heads have another width."""
    sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    sources = {name: node.input[0] for node in graph.node for name in node.output if node.input}

    def size(scale: str) -> tuple[int, ...]:
        while scale not in sizes:  # a quantised or cast constant
            scale = sources[scale]
        return sizes[scale]

    norms = (node for node in graph.node if node.op_type == "RMSNormalization")
    return [node.input[0] for node in norms if size(node.input[1]) == (width,)]
