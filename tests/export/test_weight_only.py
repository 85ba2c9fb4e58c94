"""The w8 graphs: which products have 8-bit weights, and that they still compute the same."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from mobiedit.export.weight_only import BLOCK, quantise_weights

GRAPHS = ("prefix", "head")
STATIC_PRODUCTS = {"prefix": 11, "head": 1}
"""Two attentions of four projections and one MLP of three; the vocabulary projection."""


@pytest.fixture(scope="module")
def quantised(fp32_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("w8")
    for graph in GRAPHS:
        quantise_weights(fp32_bundle / f"{graph}.onnx", folder / f"{graph}.onnx")
    return folder


def nodes(folder: Path, graph: str) -> list[onnx.NodeProto]:
    return list(onnx.load(folder / f"{graph}.onnx", load_external_data=False).graph.node)


def feeds(graph: str, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    if graph == "head":
        return {"hidden": rng.standard_normal((9, 64)).astype(np.float32)}
    batch, tokens, past = 2, 6, 3
    angles = rng.uniform(0, 6, (batch, 1, tokens, 16))
    values: dict[str, Any] = {
        "hidden": rng.standard_normal((batch, tokens, 64)),
        "cos": np.cos(angles),
        "sin": np.sin(angles),
        "mask": np.triu(np.full((batch, 1, tokens, past + tokens), -100.0), k=past + 1),
        **{f"past_{part}.{i}": rng.standard_normal((batch, 2, past, 16)) for i in (0, 1) for part in "kv"},
    }
    return {name: value.astype(np.float32) for name, value in values.items()}


@pytest.mark.parametrize("graph", GRAPHS)
def test_static_products_have_8_bits_in_blocks_of_32_when_quantised(graph: str, quantised: Path) -> None:
    found = [node for node in nodes(quantised, graph) if node.op_type == "MatMulNBits"]
    assert len(found) == STATIC_PRODUCTS[graph]
    for node in found:
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        assert (attributes["bits"], attributes["block_size"]) == (8, BLOCK)
        assert BLOCK == 32
        assert len([name for name in node.input if name]) == 3  # no zero points: symmetric


@pytest.mark.parametrize("graph", GRAPHS)
def test_weights_take_nine_bits_each_when_quantised(graph: str, quantised: Path, fp32_bundle: Path) -> None:
    small, large = (sum(p.stat().st_size for p in f.glob(f"{graph}.onnx.data")) for f in (quantised, fp32_bundle))
    # A scale of 32 bits for 32 weights; some scales are small enough to lie in the graph instead.
    assert 8 / 32 <= small / large <= 9 / 32


def test_attention_products_are_untouched_when_quantised(quantised: Path, fp32_bundle: Path) -> None:
    static = {t.name for t in onnx.load(fp32_bundle / "prefix.onnx", load_external_data=False).graph.initializer}
    attention = [n for n in nodes(fp32_bundle, "prefix") if n.op_type == "MatMul" and n.input[1] not in static]
    kept = [n for n in nodes(quantised, "prefix") if n.op_type == "MatMul"]
    assert len(attention) == 4
    assert [(n.name, list(n.input), list(n.output)) for n in kept] == [
        (n.name, list(n.input), list(n.output)) for n in attention
    ]


@pytest.mark.parametrize("graph", GRAPHS)
def test_outputs_point_the_same_way_when_quantised(graph: str, quantised: Path, fp32_bundle: Path) -> None:
    values = feeds(graph, np.random.default_rng(0))
    exact, close = (
        ort.InferenceSession(str(folder / f"{graph}.onnx"), providers=["CPUExecutionProvider"]).run(None, values)
        for folder in (fp32_bundle, quantised)
    )
    for one, other in zip(exact, close, strict=True):
        # Rounding to 255 steps a block, of weights and (in the kernel) of inputs, leaves an angle of 0.02 at most.
        assert (one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other) >= 0.999


def test_data_file_of_the_working_folder_is_left_alone_when_it_has_the_same_name(
    fp32_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = tmp_path / "prefix.onnx.data"
    stranger.write_bytes(bytes(196608))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    quantise_weights(fp32_bundle / "prefix.onnx", tmp_path / "out" / "prefix.onnx")
    assert stranger.read_bytes() == bytes(196608)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "prefix.onnx.data"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["prefix.onnx", "prefix.onnx.data"]
