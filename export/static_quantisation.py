"""Static 8-bit weights with calibrated activations of 16 bits, or of 8 in given products: what Qualcomm's NPU takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import (
    CalibraterBase,
    CalibrationMethod,
    QDQQuantizer,
    QuantType,
    StaticQuantConfig,
    TensorData,
    TensorsData,
)
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

from mobiedit.calibration.activation_ranges import RangeConfig, RangeObserver, TensorRange
from mobiedit.runtime.execution import Feeds

from .matmul_groups import MatMulGroup
from .third_party import contained

_PRESCRIBED = {"Softmax": TensorRange(0.0, 1.0), "Sigmoid": TensorRange(0.0, 1.0)}
"""Ranges of outputs that the quantiser sets itself, as the NPU wants them."""

_UNCLIPPED = ("logits",)
"""The outliers among the logits are the most probable tokens: clipped, they would all be alike."""


def quantise_static(source: Path, target: Path, feeds: Iterable[Feeds], config: RangeConfig) -> dict[str, TensorRange]:
    """Quantise a graph as ``w8a16``: observe its ranges, then `write_static` with no product at 8 bits.

    Parameters
    ----------
    feeds
        Inputs of the graph on calibration text, run and forgotten one after another.
    config
        How ranges are chosen.

    Returns
    -------
    dict
        The ranges of the activations, by tensor name.

    Raises
    ------
    NumericsError
        When an activation is not finite.
    """
    ranges = observe_ranges(source, feeds, ((config, None),))[0]
    write_static(source, target, ranges)
    return ranges


def observe_ranges(
    source: Path, feeds: Iterable[Feeds], configs: Sequence[tuple[RangeConfig, Collection[str] | None]]
) -> tuple[dict[str, TensorRange], ...]:
    """Run the FP32 graph and choose a range for each activation that the quantiser may quantise, in several ways.

    Parameters
    ----------
    feeds
        As `quantise_static`.
    configs
        How ranges are chosen, and of which tensors, None for all; there is an answer for each.

    Raises
    ------
    NumericsError
        When an activation is not finite.
    """
    with contained(source.parent):
        graph = CalibraterBase(source, _settings(source, {}).op_types_to_quantize)
    names, infos = graph.select_tensors_to_calibrate(graph.model)
    prescribed = {
        name: _PRESCRIBED[node.op_type]
        for node in graph.model.graph.node
        for name in node.output
        if node.op_type in _PRESCRIBED
    }
    inputs = {value.name for value in graph.model.graph.input}
    seen = names - prescribed.keys()
    computed = sorted(seen - inputs)
    model = onnx.load(source, load_external_data=False)
    given = {value.name for value in model.graph.output}
    model.graph.output.extend(infos[name] for name in computed if name not in given)
    # As in ONNX Runtime's own calibration: a fused operator would compute other numbers than its parts.
    session = in_memory_session(model, source.parent, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    observers = [(RangeObserver(config, _UNCLIPPED), names if only is None else only) for config, only in configs]
    for feed in feeds:
        values = {name: feed[name] for name in seen & inputs}
        values.update(zip(computed, session.run(computed, feed), strict=True))
        for name, value in values.items():
            for observer, wanted in observers:
                if name in wanted:
                    observer.observe(name, value)
    return tuple(
        dict(sorted({**observer.ranges(), **{name: prescribed[name] for name in wanted & prescribed.keys()}}.items()))
        for observer, wanted in observers
    )


def write_static(
    source: Path,
    target: Path,
    ranges: Mapping[str, TensorRange],
    narrow: Sequence[MatMulGroup] = (),
    narrow_ranges: Mapping[str, TensorRange] | None = None,
) -> None:
    """Quantise a graph with ONNX Runtime's QNN configuration and given activation ranges.

    Weights are INT8, symmetric, one scale an output channel. Activations are UINT16. The second operands of the two
    attention products are INT16 symmetric, since the NPU narrows an unsigned one to 8 bits.

    The products of ``narrow`` take UINT8 instead: an activation is converted in front of them, and what a product with
    weights gives is UINT8 as well, converted to UINT16 behind it, since the NPU takes a UINT8 input with weights of a
    scale a channel for no other output. An attention product of two UINT8 operands gives UINT16.

    Parameters
    ----------
    ranges
        Of all activations, by tensor.
    narrow
        Groups of products with 8-bit activations.
    narrow_ranges
        The ranges at 8 bits, by tensor; ``ranges`` by default.
    """
    overrides = _overrides(source, narrow, narrow_ranges or ranges)
    with contained(target.parent):
        settings = _settings(source, overrides)
        # What ONNX Runtime's `quantize` does once it has calibrated.
        quantizer = QDQQuantizer(
            onnx.load(source),
            settings.per_channel,
            settings.reduce_range,
            settings.weight_type,
            settings.activation_type,
            TensorsData(CalibrationMethod.MinMax, {name: _tensor_data(each) for name, each in ranges.items()}),
            nodes_to_quantize=[],
            nodes_to_exclude=[],
            op_types_to_quantize=settings.op_types_to_quantize,
            extra_options=settings.extra_options,
        )
        quantizer.quantize_model()
        quantizer.model.save_model_to_file(target, True)


def _settings(source: Path, overrides: dict[str, list[dict[str, Any]]]) -> StaticQuantConfig:
    return get_qnn_qdq_config(
        source,
        None,  # no calibration by ONNX Runtime
        activation_type=QuantType.QUInt16,
        weight_type=QuantType.QInt8,
        init_overrides=overrides,
    )


def in_memory_session(model: onnx.ModelProto, folder: Path, level: ort.GraphOptimizationLevel) -> ort.InferenceSession:
    """Open a graph that was changed and is never written; its weights stay in their files in ``folder``."""
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # as the runtime: weights are folded
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _tensor_data(chosen: TensorRange) -> TensorData:
    return TensorData(lowest=np.float32(chosen.low), highest=np.float32(chosen.high))


def _overrides(
    source: Path, narrow: Sequence[MatMulGroup] = (), ranges: Mapping[str, TensorRange] | None = None
) -> dict[str, list[dict[str, Any]]]:
    graph = onnx.load(source, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    narrowed = {name for group in narrow for name in group.nodes}
    receivers: dict[str, set[str]] = defaultdict(set)
    for node in graph.node:
        for name in node.input:
            receivers[name].add(node.name)
    overrides: dict[str, list[dict[str, Any]]] = {}
    ranges = ranges or {}

    def convert(name: str, node: onnx.NodeProto, to: dict[str, Any]) -> None:
        entry = {"quant_type": QuantType.QUInt16, "convert": {**to, "recv_nodes": set()}}
        overrides.setdefault(name, [entry])[0]["convert"]["recv_nodes"].add(node.name)

    for node in graph.node:
        if node.op_type != "MatMul":
            continue
        left, right, output = node.input[0], node.input[1], node.output[0]
        if right in weights:
            overrides[right] = [{"axis": 1, "quant_type": QuantType.QInt8, "symmetric": True}]
        if node.name not in narrowed:
            if right not in weights:
                convert(right, node, {"quant_type": QuantType.QInt16, "symmetric": True})
            continue
        convert(left, node, _narrow(ranges[left]))
        if right not in weights:
            convert(right, node, _narrow(ranges[right]))
            continue
        overrides[output] = [_narrow(ranges[output])]
        if receivers[output]:
            widened = {"quant_type": QuantType.QUInt16, "recv_nodes": receivers[output]}
            overrides[output][0]["convert"] = widened
    return overrides


def _narrow(chosen: TensorRange) -> dict[str, Any]:
    return {"quant_type": QuantType.QUInt8, "rmin": np.float32(chosen.low), "rmax": np.float32(chosen.high)}
