"""Static 8-bit weights with calibrated 16-bit activations (``w8a16``), in the form that Qualcomm's NPU takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibraterBase, CalibrationMethod, QDQQuantizer, QuantType, TensorData, TensorsData
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

from mobiedit.calibration.activation_ranges import RangeConfig, RangeObserver, TensorRange
from mobiedit.runtime.execution import Feeds

from .third_party import contained

_PRESCRIBED = {"Softmax": TensorRange(0.0, 1.0), "Sigmoid": TensorRange(0.0, 1.0)}
"""Ranges of outputs that the quantiser sets itself, as the NPU wants them."""

_UNCLIPPED = ("logits",)
"""The outliers among the logits are the most probable tokens: clipped, they would all be alike."""


def quantise_static(source: Path, target: Path, feeds: Iterable[Feeds], config: RangeConfig) -> dict[str, TensorRange]:
    """Quantise a graph with ONNX Runtime's QNN configuration and the project's own activation ranges.

    Weights are INT8, symmetric, one scale an output channel. Activations are UINT16. The second operands of the two
    attention products are INT16 symmetric, since the NPU narrows an unsigned one to 8 bits.

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
    with contained(target.parent):
        settings = get_qnn_qdq_config(
            source,
            None,  # no calibration by ONNX Runtime
            activation_type=QuantType.QUInt16,
            weight_type=QuantType.QInt8,
            init_overrides=_overrides(source),
        )
        graph = CalibraterBase(source, settings.op_types_to_quantize)
        ranges = _observed_ranges(source, graph, feeds, config)
        # What `quantize` does once it has calibrated.
        quantizer = QDQQuantizer(
            graph.model,
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
    return ranges


def _observed_ranges(
    source: Path, graph: CalibraterBase, feeds: Iterable[Feeds], config: RangeConfig
) -> dict[str, TensorRange]:
    """Run the FP32 graph and choose a range for each activation that the quantiser may quantise."""
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
    session = _session(source, [infos[name] for name in computed])
    observer = RangeObserver(config, _UNCLIPPED)
    for feed in feeds:
        for name in seen & inputs:
            observer.observe(name, feed[name])
        for name, value in zip(computed, session.run(computed, feed), strict=True):
            observer.observe(name, value)
    return dict(sorted({**observer.ranges(), **prescribed}.items()))


def _session(source: Path, activations: Sequence[onnx.ValueInfoProto]) -> ort.InferenceSession:
    """Open a graph that gives activations as outputs."""
    model = onnx.load(source, load_external_data=False)
    given = {value.name for value in model.graph.output}
    model.graph.output.extend(value for value in activations if value.name not in given)
    options = ort.SessionOptions()
    # As in ONNX Runtime's own calibration: a fused operator would compute other numbers than its parts.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The weights stay where they are: the changed graph is never written.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(source.parent))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _tensor_data(chosen: TensorRange) -> TensorData:
    return TensorData(lowest=np.float32(chosen.low), highest=np.float32(chosen.high))


def _overrides(source: Path) -> dict[str, list[dict[str, Any]]]:
    graph = onnx.load(source, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    overrides: dict[str, list[dict[str, Any]]] = {}
    for node in graph.node:
        if node.op_type != "MatMul":
            continue
        if node.input[1] in weights:
            overrides[node.input[1]] = [{"axis": 1, "quant_type": QuantType.QInt8, "symmetric": True}]
        else:
            narrow = {"quant_type": QuantType.QInt16, "symmetric": True, "recv_nodes": {node.name}}
            overrides[node.input[1]] = [{"quant_type": QuantType.QUInt16, "convert": narrow}]
    return overrides
