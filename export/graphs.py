"""Write the four graphs of a model as FP32 ONNX."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir
import torch
from torch import Tensor, nn

from mobiedit.runtime.bundle_layout import SEGMENT_OUTPUTS, segment_names
from mobiedit.runtime.manifest import ModelShape

from .segment import DecoderSegment, EditLayer, Head
from .stored_weight import StoredWeight
from .third_party import contained

OPSET = 23  # the first with a native RMSNormalization
_DYNAMIC = torch.export.Dim.DYNAMIC
_BATCH, _TOKENS, _PAST = 2, 3, 4  # sizes of the example inputs; any but 1, which would be taken for a constant


@dataclass(frozen=True)
class GraphSpec:
    """A module with what its export needs: named example inputs, their symbolic axes, and the outputs' names."""

    module: nn.Module
    inputs: dict[str, tuple[Tensor, dict[int, str]]]
    outputs: tuple[str, ...]


def graph_specs(model: nn.Module, shape: ModelShape, layer: int, slots: int) -> dict[str, GraphSpec]:
    """Split a model at the edit layer into its four graphs, by name."""
    layers = model.model.layers
    prefix = DecoderSegment(layers, 0, layer + 1, shape, open_end=True)
    suffix = DecoderSegment(layers, layer + 1, shape.n_layers, shape, final_norm=model.model.norm)
    tokens = {0: "batch", 1: "tokens"}
    edit_inputs = {
        "residual": (torch.randn(_BATCH, _TOKENS, shape.width), tokens),
        "directions": (torch.randn(slots, shape.mlp_width), {}),
        "deltas": (torch.randn(slots, shape.width), {}),
        "gates": (torch.randn(4, slots), {}),
    }
    return {
        "prefix": _segment_spec(prefix, shape, SEGMENT_OUTPUTS["prefix"]),
        "edit": GraphSpec(EditLayer(layers[layer]), edit_inputs, ("hidden_out", "key", "value")),
        "suffix": _segment_spec(suffix, shape, SEGMENT_OUTPUTS["suffix"]),
        "head": GraphSpec(
            Head(model.lm_head), {"hidden": (torch.randn(_TOKENS, shape.width), {0: "rows"})}, ("logits",)
        ),
    }


def write_graph(spec: GraphSpec, path: Path) -> None:
    """Export one graph to a new file, with its weights in ``<name>.data`` beside it.

    The weights are widened piece by piece as they are written: no second copy of the model, or of one, is ever held.
    """
    axes = tuple(dict.fromkeys(named, _DYNAMIC) for _, named in spec.inputs.values())
    tensors = tuple(tensor for tensor, _ in spec.inputs.values())
    if isinstance(spec.module, DecoderSegment):
        axes = (*axes[:4], axes[4:])  # the segment takes its caches as *past
    with contained(path.parent), torch.no_grad(), _placeholders(spec.module) as weights:
        program = torch.onnx.export(
            spec.module,
            tensors,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=axes,
            input_names=list(spec.inputs),
            output_names=list(spec.outputs),
            verbose=False,
        )
        assert program is not None
        stored = {name: StoredWeight(weight, name) for name, weight in weights.items()}
        for name, tensor in stored.items():
            program.model.graph.initializers[name].const_value = tensor
        onnx_ir.save(program.model, path, external_data=f"{path.name}.data")
        for tensor in stored.values():
            tensor.forget()  # the library keeps its models
    _name_axes(path, spec)


class _Projection(nn.Module):
    """A linear layer while its graph is traced: it has the weight's place and shape [D, N], not its numbers."""

    def __init__(self, source: nn.Linear, number: int) -> None:
        super().__init__()
        # One number seen through a shape; another one for each weight, so that no two are taken for the same.
        placeholder = torch.full((), float(number)).expand(source.in_features, source.out_features)
        self.weight = nn.Parameter(placeholder, requires_grad=False)
        self.bias = source.bias

    def forward(self, x: Tensor) -> Tensor:
        # Not F.linear: on two axes that exports as Gemm, which the quantisers pass over.
        y = torch.matmul(x, self.weight)
        return y if self.bias is None else y + self.bias


@contextmanager
def _placeholders(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Put placeholders where a module has linear layers; give the weights by the names that a graph has for them."""
    linear = {name: child for name, child in module.named_modules() if isinstance(child, nn.Linear)}
    try:
        for number, (name, child) in enumerate(linear.items()):
            module.set_submodule(name, _Projection(child, number))
        yield {f"{name}.weight": child.weight.detach() for name, child in linear.items()}
    finally:
        for name, child in linear.items():
            module.set_submodule(name, child)


def _segment_spec(segment: DecoderSegment, shape: ModelShape, output: str) -> GraphSpec:
    names, outputs = segment_names(output, segment.indices)
    factors = (_BATCH, 1, _TOKENS, shape.head_dim)
    inputs: list[tuple[Tensor, dict[int, str]]] = [
        (torch.randn(_BATCH, _TOKENS, shape.width), {0: "batch", 1: "tokens"}),
        (torch.randn(factors), {0: "batch", 2: "tokens"}),
        (torch.randn(factors), {0: "batch", 2: "tokens"}),
        (torch.zeros(_BATCH, 1, _TOKENS, _PAST + _TOKENS), {0: "batch", 2: "tokens", 3: "total"}),
    ]
    for _ in names[len(inputs) :]:
        cached = torch.randn(_BATCH, shape.n_kv_heads, _PAST, shape.head_dim)
        inputs.append((cached, {0: "batch", 2: "past"}))
    return GraphSpec(segment, dict(zip(names, inputs, strict=True)), outputs)


def _name_axes(path: Path, spec: GraphSpec) -> None:
    """Replace the tracer's axis names (s79, ...) by the specification's."""
    model = onnx.load(path, load_external_data=False)
    names: dict[str, str] = {}
    for value in model.graph.input:
        for axis, name in spec.inputs[value.name][1].items():
            names[value.type.tensor_type.shape.dim[axis].dim_param] = name
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]
    onnx.save(model, path)
