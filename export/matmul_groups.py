"""The matrix products of a bundle's graphs, in groups whose activations share a number of bits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx

ROLES = ("attention_input", "attention_scores", "attention_mix", "o_proj_input", "mlp_input", "down_proj_input")
"""What the groups of a decoder layer are fed, in the order of the graph: the normalised residual stream; q and K; the
attention's probabilities and V; the heads' outputs; the normalised residual stream; the MLP's key."""

HEAD = "head_input"


@dataclass(frozen=True)
class MatMulGroup:
    """Products of one layer that are fed the same, or one of its two attention products.

    Attributes
    ----------
    graph
        The graph that they are in.
    layer
        The model's layer; None for the head.
    role
        One of `ROLES`, or `HEAD`.
    nodes
        The names of the MatMul nodes.
    inputs
        Their activations: one for products with weights, two for an attention product.
    outputs
        What products with weights give; empty for an attention product.
    """

    graph: str
    layer: int | None
    role: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def name(self) -> str:
        """The layer and the role, or the role alone."""
        return self.role if self.layer is None else f"{self.layer}.{self.role}"

    @property
    def tensors(self) -> tuple[str, ...]:
        """Its inputs and outputs."""
        return *self.inputs, *self.outputs

    @property
    def operands(self) -> int:
        """How many inputs of products are activations: one of each with weights, both of an attention product."""
        return len(self.nodes) if self.outputs else len(self.inputs)


def matmul_groups(path: Path, first_layer: int) -> tuple[MatMulGroup, ...]:
    """Return the groups of an FP32 graph, in its order.

    Parameters
    ----------
    path
        The prefix, suffix or head.
    first_layer
        The model's layer that a segment starts with.
    """
    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    found: list[tuple[list[onnx.NodeProto], bool]] = []
    for node in graph.node:
        if node.op_type != "MatMul":
            continue
        static = node.input[1] in weights
        if found and static and found[-1][1] and found[-1][0][0].input[0] == node.input[0]:
            found[-1][0].append(node)
        else:
            found.append(([node], static))
    groups = []
    for index, (nodes, static) in enumerate(found):
        layer, role = divmod(index, len(ROLES))
        inputs = nodes[0].input[:1] if static else nodes[0].input
        groups.append(
            MatMulGroup(
                path.stem,
                None if path.stem == "head" else first_layer + layer,
                HEAD if path.stem == "head" else ROLES[role],
                tuple(node.name for node in nodes),
                tuple(inputs),
                tuple(node.output[0] for node in nodes) if static else (),
            )
        )
    return tuple(groups)


def operand_share(groups: Iterable[MatMulGroup], chosen: Iterable[MatMulGroup]) -> float:
    """Return the share of the operands that the chosen groups have."""
    return sum(group.operands for group in chosen) / sum(group.operands for group in groups)
