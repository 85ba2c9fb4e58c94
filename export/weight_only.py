"""Graphs with weight-only 8 or 4 bits for deployment on a CPU (``w8``, ``w4``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from onnx import helper

from .external_data import ExternalDataWriter, copied, loaded
from .third_party import contained

if TYPE_CHECKING:
    from onnxruntime.quantization.matmul_nbits_quantizer import WeightOnlyQuantConfig

_ACCURACY_LEVEL = 4  # int8 arithmetic: the level for which ONNX Runtime has fast 8-bit kernels


def quantise_to_8_bits(source: Path, target: Path, block: int) -> None:
    """Write ``source`` with each static MatMul weight in 8 bits, symmetric, one scale a block (``MatMulNBits``)."""
    with contained(target.parent):
        from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig

        _quantise(
            source,
            target,
            DefaultWeightOnlyQuantConfig(block_size=block, bits=8, is_symmetric=True, accuracy_level=_ACCURACY_LEVEL),
        )


def quantise_to_4_bits(source: Path, target: Path, block: int) -> None:
    """Write ``source`` with each static MatMul weight in 4 bits, by half-quadratic quantisation (HQQ).

    A block has a scale and a zero point, both FP32: 6 bits a weight in all with blocks of 32, 5 with 64. A zero point
    that is not rounded to one of the 16 levels keeps weights that had 4 bits before (docs/benchmarks.md). No
    calibration text is needed.
    """
    with contained(target.parent):
        from onnxruntime.quantization.matmul_nbits_quantizer import HQQWeightOnlyQuantConfig

        _quantise(source, target, HQQWeightOnlyQuantConfig(block_size=block, bits=4))


def _quantise(source: Path, target: Path, config: WeightOnlyQuantConfig) -> None:
    """Quantise one product after another: a single weight is in memory, not the graph's."""
    model = onnx.load(source, load_external_data=False)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    tensors: list[onnx.TensorProto] = []
    with ExternalDataWriter(target) as data:
        for node in graph.node:
            if node.op_type != "MatMul" or node.input[1] not in weights:
                nodes.append(node)
                continue
            product = _quantised_product(node, loaded(weights.pop(node.input[1]), source.parent), config)
            nodes += map(copied, product.node)  # the product's weights go with the rest of it
            tensors += map(data.take, product.initializer)
        tensors += [data.take(loaded(tensor, source.parent)) for tensor in weights.values()]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, target)


def _quantised_product(
    node: onnx.NodeProto, weight: onnx.TensorProto, config: WeightOnlyQuantConfig
) -> onnx.GraphProto:
    """Let ONNX Runtime quantise a graph that is this product alone."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in (node.input[0], *node.output)]
    quantizer = MatMulNBitsQuantizer(
        helper.make_model(helper.make_graph([node], "product", ends[:1], ends[1:], [weight])), algo_config=config
    )
    quantizer.process()
    return quantizer.model.graph()
