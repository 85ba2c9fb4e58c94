"""Weights that are written beside a graph one after another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from mobiedit.export.external_data import ExternalDataWriter, loaded


@pytest.fixture
def tensors() -> list[onnx.TensorProto]:
    """Two that are external, one of which starts on a page, and one that is too small."""
    rng = np.random.default_rng(0)
    sizes = {"some": 300, "few": 3, "many": 300_000}
    return [numpy_helper.from_array(rng.standard_normal(n).astype(np.float32), name) for name, n in sizes.items()]


def test_tensors_are_read_back_when_written_beside_a_graph(tensors: list[onnx.TensorProto], tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    with ExternalDataWriter(path) as data:
        moved = [data.take(tensor) for tensor in tensors]
    graph = helper.make_graph([], "graph", [], [], moved)
    onnx.save(helper.make_model(graph), path)
    assert path.stat().st_size < 1000
    for found, wanted in zip(onnx.load(path).graph.initializer, tensors, strict=True):
        assert found.name == wanted.name
        np.testing.assert_array_equal(numpy_helper.to_array(found), numpy_helper.to_array(wanted))


def test_large_tensor_starts_on_a_page_when_written(tensors: list[onnx.TensorProto], tmp_path: Path) -> None:
    with ExternalDataWriter(tmp_path / "graph.onnx") as data:
        places = [{e.key: e.value for e in data.take(tensor).external_data} for tensor in tensors]
    assert [place.get("offset") for place in places] == ["0", None, "4096"]
    assert {place.get("location") for place in places} == {"graph.onnx.data", None}


def test_tensor_is_loaded_without_a_change_to_itself_when_external(
    tensors: list[onnx.TensorProto], tmp_path: Path
) -> None:
    with ExternalDataWriter(tmp_path / "graph.onnx") as data:
        moved = data.take(tensors[0])
    before = moved.SerializeToString()
    found = loaded(moved, tmp_path)
    assert found.raw_data == tensors[0].raw_data
    assert found.data_location == onnx.TensorProto.DEFAULT
    assert moved.SerializeToString() == before
