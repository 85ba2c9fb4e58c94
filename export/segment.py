"""The decoder segment: a run of decoder layers as a plain function of its inputs.

One function serves the prefix, the suffix and generation. It shares the parameters of the source model (no copy),
takes rotary factors and mask as inputs, and holds nothing that depends on a prompt. Its form is what a mobile NPU
takes: four-dimensional tensors, grouped heads folded into rows instead of expanded, and no negation in the rotary
embedding (its sign is in the ``sin`` input).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch reader knows
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from mobiedit.runtime.manifest import ModelShape


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Apply the rotary embedding (Su et al. 2021, eq. 34): ``x`` [B, H, T, head_dim], factors [B, 1, T, head_dim]."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([x[..., half:], x[..., :half]], dim=-1) * signed_sin


class Norm(nn.Module):
    """Root-mean-square normalisation that exports as one ``RMSNormalization`` node."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.weight = source.weight
        self.epsilon = float(source.variance_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of ``x``."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


class Attention(nn.Module):
    """Causal grouped-query attention over cached and new tokens, with its input norm and residual connection."""

    def __init__(self, source: nn.Module, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.norm = Norm(source.input_layernorm)
        attention = source.self_attn
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            attention.q_proj,
            attention.k_proj,
            attention.v_proj,
            attention.o_proj,
        )
        has_head_norms = hasattr(attention, "q_norm")
        self.q_norm = Norm(attention.q_norm) if has_head_norms else nn.Identity()
        self.k_norm = Norm(attention.k_norm) if has_head_norms else nn.Identity()
        self.scale = float(attention.scaling)

    def forward(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past_k: Tensor, past_v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the residual after attention [B, T, D] and the new tokens' K and V [B, n_kv, T, head_dim]."""
        batch, tokens, _ = hidden.shape
        heads, kv_heads, head_dim = self.shape.n_heads, self.shape.n_kv_heads, self.shape.head_dim
        x = self.norm(hidden)
        q = self.q_norm(self.q_proj(x).view(batch, tokens, heads, head_dim)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(batch, tokens, kv_heads, head_dim)).transpose(1, 2)
        v = self.v_proj(x).view(batch, tokens, kv_heads, head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin) * self.scale, rotate(k, cos, sin)
        all_k, all_v = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
        group_rows = heads // kv_heads * tokens
        grouped = q.reshape(batch, kv_heads, group_rows, head_dim)
        scores = torch.matmul(grouped, all_k.transpose(2, 3))
        probabilities = torch.softmax(scores.view(batch, heads, tokens, -1) + mask, dim=-1)
        mixed = torch.matmul(probabilities.reshape(batch, kv_heads, group_rows, -1), all_v)
        joined = mixed.view(batch, heads, tokens, head_dim).transpose(1, 2).reshape(batch, tokens, -1)
        return hidden + self.o_proj(joined), k, v


class GatedMLP(nn.Module):
    """The gated MLP with its input norm; the down projection's input is the key, its output the value."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.norm = Norm(source.post_attention_layernorm)
        mlp = source.mlp
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def key(self, residual: Tensor) -> Tensor:
        """Return the key [B, T, F] of each token."""
        x = self.norm(residual)
        return F.silu(self.gate_proj(x)) * self.up_proj(x)

    def forward(self, residual: Tensor) -> Tensor:
        """Return the residual after the MLP [B, T, D]."""
        return residual + self.down_proj(self.key(residual))


class DecoderSegment(nn.Module):
    """Decoder layers ``start`` to ``stop`` (exclusive), with one of two ends.

    Parameters
    ----------
    layers
        The source model's decoder layers.
    start, stop
        The range of layers.
    shape
        The model's shape.
    open_end
        The prefix: the last layer stops after its attention, since its MLP is the edit graph.
    final_norm
        The suffix: the model's last norm is applied to the result.
    recompute
        For a gradient, keep each layer's input alone and run the layer again: a large model's inner values would be
        gigabytes.
    """

    def __init__(
        self,
        layers: nn.ModuleList,
        start: int,
        stop: int,
        shape: ModelShape,
        *,
        open_end: bool = False,
        final_norm: nn.Module | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.indices = range(start, stop)
        self.attentions = nn.ModuleList(Attention(layers[i], shape) for i in self.indices)
        closed = self.indices[:-1] if open_end else self.indices
        self.mlps = nn.ModuleList(GatedMLP(layers[i]) for i in closed)
        self.final_norm = Norm(final_norm) if final_norm is not None else nn.Identity()

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Run the segment.

        Parameters
        ----------
        hidden
            [B, T, D] residual stream at the segment's start.
        cos, sin
            [B, 1, T, head_dim] rotary factors; ``sin`` carries the sign of the rotation.
        mask
            [B, 1, T, P + T] additive attention mask.
        past
            K and V of each layer in turn, [B, n_kv, P, head_dim].

        Returns
        -------
        tuple of Tensor
            The residual stream [B, T, D], then the new tokens' K and V of each layer in turn.
        """
        new: list[Tensor] = []
        for i in range(len(self.attentions)):
            inputs = (i, hidden, cos, sin, mask, past[2 * i], past[2 * i + 1])
            again = self.recompute and hidden.requires_grad
            hidden, k, v = checkpoint(self._layer, *inputs, use_reentrant=False) if again else self._layer(*inputs)
            new += [k, v]
        return self.final_norm(hidden), *new

    def _layer(self, index: int, hidden: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden, k, v = self.attentions[index](hidden, *inputs)
        return (self.mlps[index](hidden) if index < len(self.mlps) else hidden), k, v


class EditLayer(nn.Module):
    """The MLP of the edit layer, in floating point, with the edits as inputs."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.mlp = GatedMLP(source)

    def forward(
        self, residual: Tensor, directions: Tensor, deltas: Tensor, gates: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return hidden [B, T, D], key [B, T, F] and value [B, T, D].

        ``directions`` [K, F], ``deltas`` [K, D] and ``gates`` [4, K] are the runtime's `Slots`.
        """
        key = self.mlp.key(residual)
        scale, shift, least, largest = gates.unbind(0)
        activations = torch.matmul(key, directions.transpose(0, 1))
        strengths = torch.minimum(torch.maximum(activations * scale + shift, least), largest)
        value = self.mlp.down_proj(key) + torch.matmul(strengths, deltas)
        return residual + value, key, value


class Head(nn.Module):
    """The vocabulary projection."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__()
        self.projection = source

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits [M, V] of normalised hidden states [M, D]."""
        logits: Tensor = self.projection(hidden)
        return logits
