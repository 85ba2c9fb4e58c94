"""The source model's own graphs against those that are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from mobiedit.export.graphs import graph_specs
from mobiedit.export.source_graphs import source_graphs
from mobiedit.runtime.configuration import ExecutionConfig
from mobiedit.runtime.execution import Graph
from mobiedit.runtime.manifest import read_manifest
from tests.export.graph_feeds import GRAPHS, feeds


@pytest.mark.parametrize("graph", GRAPHS)
def test_graph_is_the_written_one_when_run_by_torch(graph: str, fp32_bundle: Path, source_model: nn.Module) -> None:
    manifest = read_manifest(fp32_bundle)
    own = source_graphs(graph_specs(source_model, manifest.shape, manifest.edit_layer, manifest.slots))[graph]
    written = Graph(fp32_bundle / f"{graph}.onnx", ExecutionConfig())
    assert (own.name, own.inputs, own.outputs) == (written.name, written.inputs, written.outputs)
    values = feeds(graph, np.random.default_rng(0))
    found, wanted = own.run(values), written.run(values)
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert value.dtype == np.float32
        # FP32 sums in another order.
        np.testing.assert_allclose(value, wanted[name], rtol=0, atol=1e-4)
