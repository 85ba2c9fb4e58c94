"""The w8 and w4 graphs: which products have few bits, and that they still compute the same."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from mobiedit.export.configuration import BLOCK
from mobiedit.export.weight_only import quantise_to_4_bits, quantise_to_8_bits
from tests.export.graph_feeds import GRAPHS, feeds

STATIC_PRODUCTS = {"prefix": 11, "head": 1}
"""Two attentions of four projections and one MLP of three; the vocabulary projection."""


QUANTISERS = {8: quantise_to_8_bits, 4: quantise_to_4_bits}


@pytest.fixture(scope="module", params=QUANTISERS)
def bits(request: pytest.FixtureRequest) -> int:
    """Each number of bits in turn."""
    return int(request.param)


@pytest.fixture(scope="module")
def quantised(bits: int, fp32_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the graphs in ``bits``."""
    folder = tmp_path_factory.mktemp(f"w{bits}")
    for graph in GRAPHS:
        QUANTISERS[bits](fp32_bundle / f"{graph}.onnx", folder / f"{graph}.onnx", BLOCK)
    return folder


def nodes(folder: Path, graph: str) -> list[onnx.NodeProto]:
    return list(onnx.load(folder / f"{graph}.onnx", load_external_data=False).graph.node)


@pytest.mark.parametrize("graph", GRAPHS)
def test_static_products_have_their_bits_in_blocks_when_quantised(graph: str, bits: int, quantised: Path) -> None:
    found = [node for node in nodes(quantised, graph) if node.op_type == "MatMulNBits"]
    assert len(found) == STATIC_PRODUCTS[graph]
    for node in found:
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        assert (attributes["bits"], attributes["block_size"]) == (bits, BLOCK)
        # 8 bits are symmetric, 4 have zero points.
        assert len([name for name in node.input if name]) == {8: 3, 4: 4}[bits]


@pytest.mark.parametrize("graph", GRAPHS)
def test_weights_take_nine_or_six_bits_each_when_quantised(
    graph: str, bits: int, quantised: Path, fp32_bundle: Path
) -> None:
    small, large = (sum(p.stat().st_size for p in f.glob(f"{graph}.onnx.data")) for f in (quantised, fp32_bundle))
    # A scale of 32 bits for 32 weights, a zero point as well; some are small enough to lie in the graph instead.
    assert bits / 32 <= small / large <= {8: 9, 4: 6}[bits] / 32


def test_attention_products_are_untouched_when_quantised(quantised: Path, fp32_bundle: Path) -> None:
    static = {t.name for t in onnx.load(fp32_bundle / "prefix.onnx", load_external_data=False).graph.initializer}
    attention = [n for n in nodes(fp32_bundle, "prefix") if n.op_type == "MatMul" and n.input[1] not in static]
    kept = [n for n in nodes(quantised, "prefix") if n.op_type == "MatMul"]
    assert len(attention) == 4
    assert [(n.name, list(n.input), list(n.output)) for n in kept] == [
        (n.name, list(n.input), list(n.output)) for n in attention
    ]


@pytest.mark.parametrize("graph", GRAPHS)
def test_outputs_point_the_same_way_when_quantised(graph: str, bits: int, quantised: Path, fp32_bundle: Path) -> None:
    values = feeds(graph, np.random.default_rng(0))
    exact, close = (
        ort.InferenceSession(str(folder / f"{graph}.onnx"), providers=["CPUExecutionProvider"]).run(None, values)
        for folder in (fp32_bundle, quantised)
    )
    for one, other in zip(exact, close, strict=True):
        # Rounding to 255 steps a block, of weights and (in the kernel) of inputs, leaves an angle of 0.02 at most;
        # to 15 steps, of weights alone, on random ones, of 0.25.
        assert (one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other) >= {8: 0.999, 4: 0.97}[bits]


def test_weights_are_exact_when_they_lie_on_16_evenly_spaced_levels_of_any_offset(tmp_path: Path) -> None:
    # As those of a checkpoint do that was in GGUF's Q4_1. A zero point that is rounded would move all of a block.
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 16, (3, 2, BLOCK))
    levels[..., :2] = (0, 15)
    weight = (levels * 0.01 + rng.uniform(-0.2, 0.1, (3, 2, 1))).reshape(3, 2 * BLOCK).T.astype(np.float32)
    onnx.save(product(weight), tmp_path / "exact.onnx")
    quantise_to_4_bits(tmp_path / "exact.onnx", tmp_path / "quantised.onnx", BLOCK)
    session = ort.InferenceSession(str(tmp_path / "quantised.onnx"), providers=["CPUExecutionProvider"])
    read = session.run(None, {"x": np.eye(2 * BLOCK, dtype=np.float32)})[0]
    np.testing.assert_allclose(read, weight, atol=0.01 / 50)  # a fiftieth of a step: HQQ moves zero points a little


def product(weight: NDArray[np.float32]) -> onnx.ModelProto:
    """Return a model that multiplies "x" with a weight."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "test",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["rows", weight.shape[0]])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["rows", weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("bits", "bits_a_weight"), [(8, 8.5), (4, 5)])
def test_blocks_of_64_halve_the_scales_when_asked_for(bits: int, bits_a_weight: float, tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((1024, 256)).astype(np.float32)
    onnx.save(product(weight), tmp_path / "exact.onnx")
    QUANTISERS[bits](tmp_path / "exact.onnx", tmp_path / "quantised.onnx", 64)
    size = (tmp_path / "quantised.onnx.data").stat().st_size
    assert size == pytest.approx(weight.size * bits_a_weight / 8, rel=0.001)  # what aligns a tensor
    (node,) = onnx.load(tmp_path / "quantised.onnx").graph.node
    assert {a.name: a.i for a in node.attribute}["block_size"] == 64


@pytest.mark.parametrize("quantise", QUANTISERS.values())
def test_data_file_of_the_working_folder_is_left_alone_when_it_has_the_same_name(
    quantise: Callable[[Path, Path, int], None], fp32_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = tmp_path / "prefix.onnx.data"
    stranger.write_bytes(bytes(196608))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    quantise(fp32_bundle / "prefix.onnx", tmp_path / "out" / "prefix.onnx", BLOCK)
    assert stranger.read_bytes() == bytes(196608)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "prefix.onnx.data"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["prefix.onnx", "prefix.onnx.data"]
