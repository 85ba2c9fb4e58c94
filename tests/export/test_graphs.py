"""The written FP32 graphs: names, axes, operators that an NPU takes, and where the weights lie."""

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from mobiedit.calibration.widened import WidenedLinear, widen
from mobiedit.export.graphs import graph_specs, write_graph
from mobiedit.export.segment import DecoderSegment
from mobiedit.runtime import open_bundle
from mobiedit.runtime.bundle_layout import GRAPHS
from mobiedit.runtime.decoder import Slots
from mobiedit.runtime.manifest import read_manifest

SEGMENTS = {"prefix": ("residual_out", (0, 1)), "suffix": ("hidden_out", (2, 3))}
Axes = dict[str, list[str | int]]


def load(bundle: Path, graph: str) -> onnx.ModelProto:
    return onnx.load(bundle / f"{graph}.onnx", load_external_data=False)


def axes(values: list[onnx.ValueInfoProto]) -> Axes:
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}


@pytest.mark.parametrize("graph", SEGMENTS)
def test_segment_has_named_inputs_and_axes_when_written(graph: str, fp32_bundle: Path) -> None:
    past: Axes = {f"past_{part}.{i}": ["batch", 2, "past", 16] for i in SEGMENTS[graph][1] for part in "kv"}
    factors: list[str | int] = ["batch", 1, "tokens", 16]
    expected: Axes = {
        "hidden": ["batch", "tokens", 64],
        "cos": factors,
        "sin": factors,
        "mask": ["batch", 1, "tokens", "total"],
        **past,
    }
    found = axes(list(load(fp32_bundle, graph).graph.input))
    assert found == expected
    assert list(found) == list(expected)  # the decoder feeds them by position


@pytest.mark.parametrize("graph", SEGMENTS)
def test_segment_has_named_outputs_and_axes_when_written(graph: str, fp32_bundle: Path) -> None:
    name, layers = SEGMENTS[graph]
    new: Axes = {f"new_{part}.{i}": ["batch", 2, "tokens", 16] for i in layers for part in "kv"}
    expected: Axes = {name: ["batch", "tokens", 64], **new}
    found = axes(list(load(fp32_bundle, graph).graph.output))
    assert found == expected
    assert list(found) == list(expected)


def test_edit_graph_takes_three_slots_when_written_with_three(fp32_bundle: Path) -> None:
    graph = load(fp32_bundle, "edit").graph
    assert axes(list(graph.input)) == {
        "residual": ["batch", "tokens", 64],
        "directions": [3, 128],
        "deltas": [3, 64],
        "gates": [4, 3],
    }
    assert axes(list(graph.output)) == {
        "hidden_out": ["batch", "tokens", 64],
        "key": ["batch", "tokens", 128],
        "value": ["batch", "tokens", 64],
    }


def test_head_takes_rows_when_written(fp32_bundle: Path) -> None:
    graph = load(fp32_bundle, "head").graph
    assert axes(list(graph.input)) == {"hidden": ["rows", 64]}
    assert axes(list(graph.output)) == {"logits": ["rows", 600]}


@pytest.mark.parametrize(("graph", "norms"), [("prefix", 3), ("edit", 1), ("suffix", 5), ("head", 0)])
def test_norms_are_native_nodes_when_written(graph: str, norms: int, fp32_bundle: Path) -> None:
    operators = Counter(node.op_type for node in load(fp32_bundle, graph).graph.node)
    assert operators["RMSNormalization"] == norms
    assert not operators.keys() & {"ReduceMean", "Sqrt", "Reciprocal", "Pow", "Div"}  # what a norm falls apart into


@pytest.mark.parametrize("graph", GRAPHS)
def test_operators_are_what_an_npu_takes_when_written(graph: str, fp32_bundle: Path) -> None:
    model = load(fp32_bundle, graph)
    operators = {node.op_type for node in model.graph.node}
    assert "MatMul" in operators or "Gemm" in operators
    assert not operators & {"Expand", "Neg", "Tile", "Where", "If", "Loop", "ScatterND", "Einsum"}
    assert not model.functions


@pytest.mark.parametrize("graph", GRAPHS)
def test_tensors_have_at_most_four_axes_when_written(graph: str, fp32_bundle: Path) -> None:
    model = onnx.shape_inference.infer_shapes(load(fp32_bundle, graph))
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.value_info}
    outputs = {name for node in model.graph.node for name in node.output}
    assert outputs <= ranks.keys() | {value.name for value in model.graph.output}  # every rank is known
    assert max(ranks.values(), default=0) <= 4


@pytest.mark.parametrize("graph", GRAPHS)
def test_weights_are_in_one_flat_file_beside_the_graph_when_written(graph: str, fp32_bundle: Path) -> None:
    tensors = load(fp32_bundle, graph).graph.initializer
    external = [tensor for tensor in tensors if tensor.data_location == onnx.TensorProto.EXTERNAL]
    locations = {entry.value for tensor in external for entry in tensor.external_data if entry.key == "location"}
    assert locations == {f"{graph}.onnx.data"}
    assert sorted(path.name for path in fp32_bundle.glob(f"{graph}.*")) == [f"{graph}.onnx", f"{graph}.onnx.data"]
    inside = [tensor for tensor in tensors if tensor.data_location != onnx.TensorProto.EXTERNAL]
    assert all(np.prod(tensor.dims) <= 64 for tensor in inside)  # norms and constants alone


@pytest.mark.parametrize("graph", GRAPHS)
def test_checker_passes_when_written(graph: str, fp32_bundle: Path) -> None:
    onnx.checker.check_model(str(fp32_bundle / f"{graph}.onnx"), full_check=True)


@pytest.mark.parametrize(("batch", "tokens", "past"), [(1, 1, 1), (5, 1, 9), (3, 7, 1)])
def test_prefix_takes_any_sizes_when_written(batch: int, tokens: int, past: int, fp32_bundle: Path) -> None:
    session = ort.InferenceSession(str(fp32_bundle / "prefix.onnx"), providers=["CPUExecutionProvider"])
    sizes = {"batch": batch, "tokens": tokens, "past": past, "total": past + tokens}
    feeds = {i.name: np.ones([sizes.get(a, a) for a in i.shape], np.float32) for i in session.get_inputs()}
    for output, value in zip(session.get_outputs(), session.run(None, feeds), strict=True):
        assert value.shape == tuple(sizes.get(a, a) for a in output.shape)


def test_edit_graph_is_a_changed_down_projection_when_slots_are_taken(
    fp32_bundle: Path, source_model: nn.Module
) -> None:
    opened = open_bundle(fp32_bundle)
    rng = np.random.default_rng(0)
    residual = rng.standard_normal((2, 5, 64)).astype(np.float32)
    slots = Slots.empty(3, opened.manifest.shape)
    for slot in (0, 2):
        direction, delta = rng.standard_normal(128), rng.standard_normal(64)
        slots = slots.with_edit(slot, direction.astype(np.float32), delta.astype(np.float32))
    out = opened.decoder.run_edit(residual, slots)
    layer = source_model.model.layers[1]
    with torch.no_grad():
        x = layer.post_attention_layernorm(torch.from_numpy(residual))
        key = layer.mlp.act_fn(layer.mlp.gate_proj(x)) * layer.mlp.up_proj(x)
        weight = layer.mlp.down_proj.weight + torch.from_numpy(slots.deltas.T @ slots.directions)
        value = key @ weight.T
    # FP32 sums of 128 products of size 10 in another order.
    np.testing.assert_allclose(out.keys, key.numpy(), atol=1e-4)
    np.testing.assert_allclose(out.values, value.numpy(), atol=1e-3)
    np.testing.assert_allclose(out.hidden, residual + value.numpy(), atol=1e-3)


def test_gradient_is_the_same_when_layers_are_recomputed(source_model: nn.Module, fp32_bundle: Path) -> None:
    shape = read_manifest(fp32_bundle).shape
    inputs = [tensor for tensor, _ in graph_specs(source_model, shape, 1, 3)["suffix"].inputs.values()]
    gradients = []
    for recompute in (False, True):
        segment = DecoderSegment(source_model.model.layers, 2, 4, shape, recompute=recompute)
        hidden = inputs[0].clone().requires_grad_()
        segment(hidden, *inputs[1:])[0].square().sum().backward()
        gradients.append(hidden.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_graphs_are_those_of_the_fp32_copy_when_checkpoint_is_in_half_precision(
    half: str, source_model: nn.Module, fp32_bundle: Path, tmp_path: Path
) -> None:
    shape = read_manifest(fp32_bundle).shape
    rounded = copy.deepcopy(source_model).to(getattr(torch, half))
    exact = copy.deepcopy(rounded).float()
    widen(rounded)
    files = {}
    for name, model in {"half": rounded, "exact": exact}.items():
        path = tmp_path / name / "suffix.onnx"
        path.parent.mkdir()
        write_graph(graph_specs(model, shape, 1, 3)["suffix"], path)
        files[name] = path.with_name("suffix.onnx.data").read_bytes()
    assert files["half"] == files["exact"]
    assert all(isinstance(layer.mlp.up_proj, WidenedLinear) for layer in rounded.model.layers)  # not the placeholders
