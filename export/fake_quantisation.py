"""FP32 graphs in which groups of MatMul activations can be rounded to 8 bits, each by a switch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from mobiedit.calibration.activation_ranges import TensorRange
from mobiedit.runtime.costs import CostMeter
from mobiedit.runtime.execution import Feeds, Fetched

from .matmul_groups import MatMulGroup
from .static_quantisation import in_memory_session

_LEVELS = 255  # of 8 bits: steps from the lowest to the highest


class SwitchedGraph:
    """An FP32 graph that rounds the groups in ``on`` to 8 bits: their inputs, and the outputs of those with weights.

    Parameters
    ----------
    source
        The FP32 graph.
    groups
        Its groups.
    ranges
        Ranges of its activations at 8 bits, by tensor.
    on
        Names of the groups that are rounded; looked at in every run.
    """

    def __init__(
        self, source: Path, groups: Sequence[MatMulGroup], ranges: Mapping[str, TensorRange], on: Collection[str]
    ) -> None:
        model = onnx.load(source, load_external_data=False)
        self.name = source.name
        self.inputs = tuple(value.name for value in model.graph.input)
        self.outputs = tuple(value.name for value in model.graph.output)
        self._groups, self._on = [group.name for group in groups], on
        _insert_switches(model.graph, groups, ranges)
        self._session = in_memory_session(model, source.parent, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)

    def run(self, feeds: Feeds, meter: CostMeter | None = None) -> Fetched:
        """Evaluate the graph with the switches as they are."""
        switches = {_switch(name): np.array(name in self._on) for name in self._groups}
        values = self._session.run(self.outputs, {**feeds, **switches})
        return dict(zip(self.outputs, values, strict=True))

    def placement(self) -> dict[str, int]:
        """Return nothing: it runs on the CPU alone."""
        return {}


def _switch(group: str) -> str:
    return f"eight_bits.{group}"


def _insert_switches(graph: onnx.GraphProto, groups: Sequence[MatMulGroup], ranges: Mapping[str, TensorRange]) -> None:
    """Put a rounding that a switch turns on behind each group's inputs and outputs."""
    by_node = {name: group for group in groups for name in group.nodes}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        group = by_node.get(node.name)
        if group is None:
            nodes.append(node)
            continue
        for index, name in enumerate(node.input):
            if name in group.inputs:
                rounded = f"{name}.{node.name}.rounded"
                nodes += _rounding(graph, name, rounded, ranges[name], _switch(group.name))
                node.input[index] = rounded
        nodes.append(node)
        if group.outputs:
            name = node.output[0]
            node.output[0] = f"{name}.exact"
            nodes += _rounding(graph, node.output[0], name, ranges[name], _switch(group.name))
    del graph.node[:]
    graph.node.extend(nodes)
    graph.input.extend(helper.make_tensor_value_info(_switch(g.name), TensorProto.BOOL, []) for g in groups)


def _rounding(
    graph: onnx.GraphProto, source: str, target: str, chosen: TensorRange, switch: str
) -> list[onnx.NodeProto]:
    """Return nodes that compute what QuantizeLinear and DequantizeLinear of UINT8 would, or nothing."""
    step = (chosen.high - chosen.low) / _LEVELS
    zero = round(-chosen.low / step)
    for name, value in (("step", step), ("bottom", -zero), ("top", _LEVELS - zero)):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), f"{target}.{name}"))
    chain = [source, *(f"{target}.{part}" for part in ("steps", "nearest", "level", "value"))]
    return [
        helper.make_node("Div", [chain[0], f"{target}.step"], [chain[1]]),
        helper.make_node("Round", [chain[1]], [chain[2]]),
        helper.make_node("Clip", [chain[2], f"{target}.bottom", f"{target}.top"], [chain[3]]),
        helper.make_node("Mul", [chain[3], f"{target}.step"], [chain[4]]),
        helper.make_node("Where", [switch, chain[4], source], [target]),
    ]
