"""Static 8-bit weights with calibrated 16-bit activations (``w8a16``), in the form that Qualcomm's NPU takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

from .third_party import contained

Feeds = dict[str, NDArray[Any]]


class _Recorded(CalibrationDataReader):
    def __init__(self, feeds: Sequence[Feeds]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feeds | None:
        return next(self._feeds, None)


def quantise_static(source: Path, target: Path, feeds: Sequence[Feeds]) -> None:
    """Quantise a graph with ONNX Runtime's QNN configuration.

    Weights are INT8, symmetric, one scale an output channel. Activations are UINT16 with ranges from ``feeds``. The
    second operands of the two attention products are INT16 symmetric, since the NPU narrows an unsigned one to 8
    bits.

    Parameters
    ----------
    feeds
        Inputs of the graph on calibration text.
    """
    with contained(target.parent):
        config = get_qnn_qdq_config(
            source,
            _Recorded(feeds),
            activation_type=QuantType.QUInt16,
            weight_type=QuantType.QInt8,
            init_overrides=_overrides(source),
        )
        config.use_external_data_format = True
        quantize(source, target, config)


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
