"""The fp16 graphs: what is stored and computed in float16, and that they still compute the same."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from mobiedit.export.half_precision import convert_to_half
from tests.export.graph_feeds import GRAPHS, feeds


@pytest.fixture(scope="module")
def converted(fp32_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fp16")
    for graph in GRAPHS:
        convert_to_half(fp32_bundle / f"{graph}.onnx", folder / f"{graph}.onnx")
    return folder


@pytest.mark.parametrize("graph", GRAPHS)
def test_weights_are_half_as_large_when_converted(graph: str, converted: Path, fp32_bundle: Path) -> None:
    small, large = ((folder / f"{graph}.onnx.data").stat().st_size for folder in (converted, fp32_bundle))
    assert small == pytest.approx(large / 2, rel=0.02)  # the norms stay FP32
    model = onnx.load(converted / f"{graph}.onnx", load_external_data=False)
    matrices = Counter(tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 2)
    assert set(matrices) == {TensorProto.FLOAT16}


@pytest.mark.parametrize("graph", GRAPHS)
def test_inputs_and_outputs_are_as_before_when_converted(graph: str, converted: Path, fp32_bundle: Path) -> None:
    before, after = (onnx.load(f / f"{graph}.onnx", load_external_data=False).graph for f in (fp32_bundle, converted))
    for old, new in ((before.input, after.input), (before.output, after.output)):
        assert [value.name for value in old] == [value.name for value in new]
        assert {value.type.tensor_type.elem_type for value in new} == {TensorProto.FLOAT}


@pytest.mark.parametrize("graph", GRAPHS)
def test_outputs_are_close_when_converted(graph: str, converted: Path, fp32_bundle: Path) -> None:
    values = feeds(graph, np.random.default_rng(0))
    exact, close = (
        ort.InferenceSession(str(folder / f"{graph}.onnx"), providers=["CPUExecutionProvider"]).run(None, values)
        for folder in (fp32_bundle, converted)
    )
    for one, other in zip(exact, close, strict=True):
        assert other.dtype == np.float32
        # FP16 has 11 bits; its rounding adds up over the two layers.
        np.testing.assert_allclose(other, one, atol=0.02 * np.abs(one).max())


def test_outputs_are_finite_when_the_square_of_a_residual_does_not_fit_half_precision(converted: Path) -> None:
    values = feeds("prefix", np.random.default_rng(0))
    values["hidden"] = values["hidden"] * 1000  # FP16 ends at 65504
    session = ort.InferenceSession(str(converted / "prefix.onnx"), providers=["CPUExecutionProvider"])
    assert all(np.isfinite(out).all() for out in session.run(None, values))


def test_data_file_of_the_working_folder_is_left_alone_when_it_has_the_same_name(
    fp32_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = tmp_path / "prefix.onnx.data"
    stranger.write_bytes(bytes(196608))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    convert_to_half(fp32_bundle / "prefix.onnx", tmp_path / "out" / "prefix.onnx")
    assert stranger.read_bytes() == bytes(196608)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["prefix.onnx", "prefix.onnx.data"]
