"""The w8a16 graphs: what is 8 bits, what is 16, and that the right weights are in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from mobiedit.calibration.activation_ranges import RangeConfig
from mobiedit.export.static_quantisation import quantise_static

QUANTISED = ("prefix", "suffix", "head")
STATIC_PRODUCTS = {"prefix": 11, "suffix": 14, "head": 1}
"""Four projections of each attention, three of each MLP; the prefix lacks its last layer's MLP."""
LAYERS = 2  # of each segment


@dataclass(frozen=True)
class Operand:
    """What a product is fed: the tensor behind a DequantizeLinear node, with its scale and zero point."""

    quantised: NDArray[Any] | None  # None when it is no constant
    scale: NDArray[Any]
    zero_point: NDArray[Any]
    axis: int


@dataclass(frozen=True)
class Product:
    """A node that multiplies matrices."""

    operator: str
    transposed: bool
    left: Operand
    right: Operand
    weight: str


def products(folder: Path, graph: str) -> list[Product]:
    model = onnx.load(folder / f"{graph}.onnx")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}

    def operand(name: str) -> Operand:
        node = producers[name]
        assert node.op_type == "DequantizeLinear", f"{name} is not quantised"
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        return Operand(constants.get(node.input[0]), constants[node.input[1]], constants[node.input[2]], axis)

    return [
        Product(
            node.op_type,
            any(attribute.name == "transB" and attribute.i for attribute in node.attribute),
            operand(node.input[0]),
            operand(node.input[1]),
            producers[node.input[1]].input[0].removesuffix("_quantized"),
        )
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm")
    ]


@pytest.mark.parametrize("graph", QUANTISED)
def test_static_weights_are_int8_with_a_scale_an_output_channel_when_quantised(graph: str, w8a16_bundle: Path) -> None:
    static = [product for product in products(w8a16_bundle, graph) if product.right.quantised is not None]
    assert len(static) == STATIC_PRODUCTS[graph]
    for product in static:
        weight = product.right
        assert weight.quantised is not None
        channels = 0 if product.transposed else 1
        assert weight.quantised.dtype == np.int8
        assert weight.scale.shape == (weight.quantised.shape[channels],), product.weight
        assert weight.axis == channels
        assert not weight.zero_point.any()


@pytest.mark.parametrize("graph", QUANTISED)
def test_static_weights_are_within_half_a_step_of_the_source_when_quantised(
    graph: str, fp32_bundle: Path, w8a16_bundle: Path
) -> None:
    tensors = onnx.load(fp32_bundle / f"{graph}.onnx").graph.initializer
    source = {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}
    checked = 0
    for product in products(w8a16_bundle, graph):
        weight = product.right
        if weight.quantised is None:
            continue
        step = weight.scale[:, None] if product.transposed and weight.scale.ndim else weight.scale
        # Rounding is half a step, and a little for the scale's own rounding to FP32.
        assert np.max(np.abs(weight.quantised * step - source[product.weight]) / step) <= 0.501
        checked += 1
    assert checked == STATIC_PRODUCTS[graph]


@pytest.mark.parametrize("graph", QUANTISED)
def test_activations_are_uint16_when_quantised(graph: str, w8a16_bundle: Path) -> None:
    found = products(w8a16_bundle, graph)
    assert found
    for product in found:
        assert product.left.quantised is None
        assert product.left.zero_point.dtype == np.uint16
        assert product.left.scale.shape == ()


@pytest.mark.parametrize("graph", ["prefix", "suffix"])
def test_attention_operands_are_int16_symmetric_when_quantised(graph: str, w8a16_bundle: Path) -> None:
    attention = [product for product in products(w8a16_bundle, graph) if product.right.quantised is None]
    assert len(attention) == 2 * LAYERS
    for product in attention:
        assert product.right.zero_point.dtype == np.int16
        assert product.right.zero_point == 0


def test_edit_graph_has_no_quantisation_when_precision_is_w8a16(fp32_bundle: Path, w8a16_bundle: Path) -> None:
    operators = {node.op_type for node in onnx.load(w8a16_bundle / "edit.onnx", load_external_data=False).graph.node}
    assert not operators & {"QuantizeLinear", "DequantizeLinear"}
    assert (w8a16_bundle / "edit.onnx.data").read_bytes() == (fp32_bundle / "edit.onnx.data").read_bytes()


@pytest.mark.parametrize("graph", QUANTISED)
def test_weights_take_a_quarter_when_quantised(graph: str, fp32_bundle: Path, w8a16_bundle: Path) -> None:
    small, large = ((bundle / f"{graph}.onnx.data").stat().st_size for bundle in (w8a16_bundle, fp32_bundle))
    assert 0.25 <= small / large < 0.3  # scales may be in the file: one a channel of at least 64 weights


def logits(graph: Path, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, {"hidden": hidden})[0]
    return result


def test_data_file_of_the_working_folder_is_left_alone_when_it_has_the_same_name(
    fp32_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # onnx resolves the name of a data file against the working folder too: it would read or overwrite this one.
    stranger = tmp_path / "head.onnx.data"
    stranger.write_bytes(bytes(153600))  # as large as the real one, so that it could be taken for it
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((32, 64)).astype(np.float32)
    quantise_static(fp32_bundle / "head.onnx", out / "head.onnx", [{"hidden": hidden}], RangeConfig())
    assert stranger.read_bytes() == bytes(153600)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head.onnx.data", "out"]
    assert sorted(path.name for path in out.iterdir()) == ["head.onnx", "head.onnx.data"]
    found, expected = logits(out / "head.onnx", hidden), logits(fp32_bundle / "head.onnx", hidden)
    # 8-bit weights turn the logits by about 0.01; another file's weights would leave nothing of them.
    assert (found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected) > 0.999
