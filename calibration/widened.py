"""Weights that stay in the half precision of their checkpoint and are widened to FP32 piece by piece when used.

A 3B checkpoint is 6 GB in bfloat16 and 12 GB in FP32. Widening is exact, so that a model computes what its FP32 copy
would compute, but for the order of sums.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

HALVES = {"BF16": torch.bfloat16, "F16": torch.float16}
"""The half precisions by what safetensors calls them."""

_PIECE = 2**24  # numbers that are widened at a time: 64 MiB in FP32


def product(x: Tensor, weight: Tensor) -> Tensor:
    """Return ``x @ weight.T`` in the precision of ``x`` [..., D]; a ``weight`` [N, D] of another is widened in pieces.

    Differentiable in ``x`` alone; what is kept for that is the weight as it is.
    """
    if weight.dtype == x.dtype:
        return F.linear(x, weight)
    widened: Tensor = _Product.apply(x, weight)
    return widened


class WidenedLinear(nn.Linear):
    """A linear layer whose weight is widened when used."""

    def __init__(self, source: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = source.in_features, source.out_features
        self.weight = source.weight
        self.bias = None if source.bias is None else _widened(source.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., N] for ``x`` [..., D]."""
        y = product(x, self.weight)
        return y if self.bias is None else y + self.bias


class WidenedEmbedding(nn.Module):
    """An embedding of which the rows that are asked for are widened."""

    def __init__(self, source: nn.Embedding) -> None:
        super().__init__()
        self.weight = source.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Return [..., D] float32."""
        return F.embedding(ids, self.weight).float()


def widen(model: nn.Module) -> None:
    """Let a model in half precision compute in FP32: matrices are widened when used, all else once and for all."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, WidenedLinear(child))
            elif isinstance(child, nn.Embedding):
                setattr(parent, name, WidenedEmbedding(child))
    for module in model.modules():
        if not isinstance(module, WidenedLinear | WidenedEmbedding):
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, _widened(parameter))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:  # noqa: ANN401 - torch's context has no type
        ctx.save_for_backward(weight)
        ctx.dtype = x.dtype
        return torch.cat([F.linear(x, piece.to(x.dtype)) for piece in _pieces(weight)], dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (gradient,), (weight,) = gradients, ctx.saved_tensors
        pieces = _pieces(weight)
        total = torch.zeros(*gradient.shape[:-1], weight.shape[1], dtype=ctx.dtype)
        for part, piece in zip(gradient.split(len(pieces[0]), dim=-1), pieces, strict=True):
            total += part @ piece.to(part.dtype)
        return total, None


def _pieces(weight: Tensor) -> tuple[Tensor, ...]:
    return weight.split(max(1, _PIECE // weight.shape[1]))


def _widened(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().float(), requires_grad=False)
