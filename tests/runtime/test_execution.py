"""One graph in ONNX Runtime: its names, its errors, and folded weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from mobiedit.runtime.configuration import ExecutionConfig
from mobiedit.runtime.errors import BundleError, NumericsError
from mobiedit.runtime.execution import Graph


def save(path: Path, nodes: list[onnx.NodeProto], outputs: tuple[str, ...], **weights: np.ndarray) -> Path:
    """Write a graph with one float input "x" of two numbers."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def logarithm(tmp_path: Path) -> Graph:
    """A graph that returns its input and the input's logarithm."""
    nodes = [helper.make_node("Identity", ["x"], ["same"]), helper.make_node("Log", ["x"], ["logarithm"])]
    return Graph(save(tmp_path / "log.onnx", nodes, ("same", "logarithm")), ExecutionConfig())


def test_outputs_come_by_name_when_all_are_finite(logarithm: Graph) -> None:
    assert (logarithm.name, logarithm.inputs, logarithm.outputs) == ("log.onnx", ("x",), ("same", "logarithm"))
    out = logarithm.run({"x": np.array([1, np.e], np.float32)})
    assert list(out) == ["same", "logarithm"]
    assert out["same"].tolist() == pytest.approx([1, np.e])
    assert out["logarithm"].tolist() == pytest.approx([0, 1], abs=1e-6)


@pytest.mark.parametrize("bad", [-1.0, 0.0], ids=["nan", "infinity"])
def test_run_refuses_by_graph_and_output_when_one_number_is_not_finite(bad: float, logarithm: Graph) -> None:
    with pytest.raises(NumericsError, match=r"^log\.onnx returned NaN or infinity in 'logarithm': run `mobiedit"):
        logarithm.run({"x": np.array([1, bad], np.float32)})


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x08\x08", b"\xff" * 100])
def test_open_refuses_in_one_line_when_file_is_no_graph(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "edit.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"^edit\.onnx cannot be loaded \(.+\): export the bundle again$") as caught:
        Graph(tmp_path / "edit.onnx", ExecutionConfig())
    assert "\n" not in str(caught.value)


def test_open_refuses_in_one_line_when_onnx_runtime_writes_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(f"{'long ' * 100}\nTraceback:\n  more")

    monkeypatch.setattr(ort, "InferenceSession", fail)
    with pytest.raises(BundleError) as caught:
        Graph(tmp_path / "edit.onnx", ExecutionConfig())
    message = str(caught.value)
    assert message.startswith("edit.onnx cannot be loaded (long long ")
    assert message.endswith("): export the bundle again")
    assert "\n" not in message
    assert len(message) < 300


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_session_has_the_threads_and_the_processor_alone_when_it_is_made(
    threads: int, logarithm: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, list[str]]] = []
    session = ort.InferenceSession

    def record(path: str, options: ort.SessionOptions, providers: list[str]) -> ort.InferenceSession:
        made.append((options.intra_op_num_threads, providers))
        return session(path, options, providers=providers)

    monkeypatch.setattr(ort, "InferenceSession", record)
    Graph(tmp_path / logarithm.name, ExecutionConfig(threads))
    assert made == [(threads, ["CPUExecutionProvider"])]


def test_open_refuses_when_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"^edit\.onnx cannot be loaded"):
        Graph(tmp_path / "edit.onnx", ExecutionConfig())


def test_open_refuses_when_weights_beside_the_graph_are_missing(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    path = save(tmp_path / "edit.onnx", nodes, ("y",), w=np.ones(2, np.float32))
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="edit.onnx.data", size_threshold=0)
    assert Graph(path, ExecutionConfig()).run({"x": np.ones(2, np.float32)})["y"].tolist() == [2, 2]
    (tmp_path / "edit.onnx.data").unlink()
    with pytest.raises(BundleError, match=r"^edit\.onnx cannot be loaded"):
        Graph(path, ExecutionConfig())


@pytest.mark.parametrize("fold", [False, True])
def test_quantised_weights_act_alike_when_they_are_folded_or_not(fold: bool, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["weight", "scale", "zero"], ["w"]),
        helper.make_node("Mul", ["x", "w"], ["y"]),
    ]
    weights = {"weight": np.array([-3, 100], np.int8), "scale": np.float32(0.5), "zero": np.int8(1)}
    path = save(tmp_path / "w8.onnx", nodes, ("y",), **{name: np.asarray(value) for name, value in weights.items()})
    out = Graph(path, ExecutionConfig(), fold_weights=fold).run({"x": np.array([1, 2], np.float32)})
    assert out["y"].tolist() == [-2, 99]
