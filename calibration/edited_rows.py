"""Rows of text in the source model with rank-one updates in force, as a differentiable function of their deltas.

The rows are read once without an update. The layers up to the edit layer, and behind it the tokens in front of a
chosen one, are taken from that reading; the sink token is always among these, since a bundle's is a constant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ReadRows:
    """B rows that the source model has read without an update; the sink token is at place 0 of each.

    Attributes
    ----------
    model
        The source model.
    lengths
        [B] tokens of each row; what is behind is padding.
    keys, values, hidden
        By layer: keys [B, T, F], values [B, T, D] and the residual stream behind the layer [B, T, D].
    past
        K and V of every layer of the model, [B, n_kv, T, head_dim].
    final
        [B, T, D] normalised last hidden states.
    """

    model: nn.Module
    lengths: Tensor
    keys: Mapping[int, Tensor]
    values: Mapping[int, Tensor]
    hidden: Mapping[int, Tensor]
    past: tuple[tuple[Tensor, Tensor], ...]
    final: Tensor


@torch.no_grad()
def read_rows(model: nn.Module, sink: int, texts: Sequence[Sequence[int]], layers: Sequence[int]) -> ReadRows:
    """Read texts behind the sink token, and keep what updates of some layers need."""
    lengths = torch.tensor([1 + len(text) for text in texts])
    ids = torch.tensor([[sink, *text, *[sink] * (int(lengths.max()) - 1 - len(text))] for text in texts])
    keys: dict[int, Tensor] = {}
    values: dict[int, Tensor] = {}
    hidden: dict[int, Tensor] = {}

    def watch(layer: int) -> list[torch.utils.hooks.RemovableHandle]:
        def keep_mlp(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            keys[layer], values[layer] = inputs[0], output

        def keep_hidden(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            hidden[layer] = output

        block = model.model.layers[layer]
        return [block.mlp.down_proj.register_forward_hook(keep_mlp), block.register_forward_hook(keep_hidden)]

    with ExitStack() as hooks:
        for handle in (handle for layer in layers for handle in watch(layer)):
            hooks.callback(handle.remove)
        output = model.model(ids, use_cache=True)
    past = tuple((layer.keys, layer.values) for layer in output.past_key_values.layers)
    return ReadRows(model, lengths, keys, values, hidden, past, output.last_hidden_state)


@dataclass(frozen=True)
class EditedRows:
    """Rows behind an edit layer, each from one of its tokens on, with an update of its own in force.

    Attributes
    ----------
    layers
        The model's layers behind the edit layer, by their index.
    norm
        The model's last norm.
    hidden
        [B, T, D] residual stream behind the edit layer, without the update.
    scales
        [B, T] what of delta each token receives: direction . key.
    rotary
        Cosines and sines [B, T, head_dim].
    mask
        [B, 1, T, P + T] additive attention mask.
    front
        K and V of the P tokens in front.
    starts
        [B] first token of each row.
    """

    layers: Mapping[int, nn.Module]
    norm: nn.Module
    hidden: Tensor
    scales: Tensor
    rotary: tuple[Tensor, Tensor]
    mask: Tensor
    front: FrontTokens
    starts: Tensor

    @staticmethod
    def open(read: ReadRows, layer: int, rows: Tensor, starts: Tensor, directions: Tensor) -> EditedRows:
        """Prepare some of the rows for updates of a layer.

        Parameters
        ----------
        rows
            [B] which rows.
        starts
            [B] the first token of each that is computed and receives the update, at least 1.
        directions
            [B, F] of the updates.
        """
        model = read.model.model
        tokens, front = int((read.lengths[rows] - starts).max()), int(starts.max())
        places = starts[:, None] + torch.arange(tokens)
        index = (rows[:, None], places.clamp(max=int(read.lengths.max()) - 1))
        visible = torch.ones(len(rows), tokens, front + tokens).tril(front).bool()
        visible[:, :, :front] = (torch.arange(front) < starts[:, None])[:, None]
        above = range(layer + 1, len(model.layers))
        hidden = read.hidden[layer][index]
        return EditedRows(
            {i: model.layers[i] for i in above},
            model.norm,
            hidden,
            torch.einsum("btf,bf->bt", read.keys[layer][index], directions),
            model.rotary_emb(hidden, position_ids=places),
            torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)[:, None],
            FrontTokens({i: (k[rows, :, :front], v[rows, :, :front]) for i in above for k, v in [read.past[i]]}),
            starts,
        )

    def final(self, deltas: Tensor) -> Tensor:
        """Return the normalised last hidden states [B, T, D] with ``deltas`` [B, D]."""
        hidden = self.hidden + self.scales[:, :, None] * deltas[:, None]
        for layer in self.layers.values():
            hidden = layer(
                hidden, attention_mask=self.mask, position_embeddings=self.rotary, past_key_values=self.front
            )
        return self.norm(hidden)


@dataclass(frozen=True)
class FrontTokens:
    """K and V of the tokens in front by layer, where transformers expects a cache; nothing is added to it."""

    past: Mapping[int, tuple[Tensor, Tensor]]

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Return K and V of the tokens in front and of the new ones."""
        front_keys, front_values = self.past[layer]
        return torch.cat([front_keys, keys], dim=2), torch.cat([front_values, values], dim=2)
