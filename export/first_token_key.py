"""The key of a token that stands first in a text, computed from a checkpoint's weights one layer at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

ReadTensor = Callable[[str], Tensor | None]
"""A checkpoint's tensor by name, None where it has none."""


@torch.no_grad()
def first_token_key(read: ReadTensor, config: Any, token: int, layer: int) -> NDArray[np.float32]:  # noqa: ANN401
    """Return the input [F] of a layer's down projection at a text's first token.

    That token attends to itself alone, so attention gives its value and nothing needs a query, a key or a position.
    It holds for the families that can be exported (`architectures`).

    Parameters
    ----------
    config
        The model's configuration.
    """

    def linear(x: Tensor, name: str) -> Tensor:
        weight, bias = read(f"{name}.weight"), read(f"{name}.bias")
        assert weight is not None
        return F.linear(x, weight.float(), None if bias is None else bias.float())

    def norm(x: Tensor, name: str) -> Tensor:
        weight = read(f"{name}.weight")
        assert weight is not None
        return F.rms_norm(x, x.shape, weight.float(), config.rms_norm_eps)

    embedding = read("model.embed_tokens.weight")
    assert embedding is not None
    hidden = embedding[token].float()
    group = config.num_attention_heads // (config.num_key_value_heads or config.num_attention_heads)
    for index in range(layer + 1):
        place = f"model.layers.{index}"
        value = linear(norm(hidden, f"{place}.input_layernorm"), f"{place}.self_attn.v_proj")
        heads = value.reshape(config.num_attention_heads // group, -1).repeat_interleave(group, dim=0)
        hidden = hidden + linear(heads.flatten(), f"{place}.self_attn.o_proj")
        inner = norm(hidden, f"{place}.post_attention_layernorm")
        key = F.silu(linear(inner, f"{place}.mlp.gate_proj")) * linear(inner, f"{place}.mlp.up_proj")
        if index < layer:
            hidden = hidden + linear(key, f"{place}.mlp.down_proj")
    return np.asarray(key.numpy(), np.float32)
