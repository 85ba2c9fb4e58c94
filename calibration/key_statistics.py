"""The covariance of the edit layer's keys, C = E[k k^T], from a small number of key vectors.

MEMIT took 44 million keys; ``dynamic_multiplier x F`` of them do as well (Gupta et al. 2025, arXiv 2506.04226).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

_BATCH = 8
_MAX_TOKENS = 128
_RIDGE = 1e-3  # of C's mean eigenvalue: keeps directions that no text has shown from being free


@dataclass(frozen=True)
class KeyStatistics:
    """Key statistics of one layer.

    Attributes
    ----------
    inverse_covariance
        [F, F] float32, the inverse of C with a ridge.
    keys
        Key vectors seen.
    wanted
        Key vectors asked for.
    """

    inverse_covariance: NDArray[np.float32]
    keys: int
    wanted: int


@torch.no_grad()
def collect_key_statistics(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    layer: int,
    sink: int,
    lines: Sequence[str],
    multiplier: float,
    advance: Callable[[int], None] = lambda keys: None,
) -> KeyStatistics:
    """Run calibration text up to the edit layer and sum the outer products of its keys.

    Parameters
    ----------
    sink
        The token in front of every text; its own key is left out.
    multiplier
        Keys wanted, as a multiple of the MLP's width F.
    advance
        Told the number of keys after each batch.
    """
    down = model.model.layers[layer].mlp.down_proj
    width = down.in_features
    wanted = max(1, round(multiplier * width))
    total = torch.zeros(width, width, dtype=torch.float64)
    seen = 0
    encoded = sorted((tokenizer(line, add_special_tokens=False).input_ids[:_MAX_TOKENS] for line in lines), key=len)
    # Like lengths together, but a spread of lengths early: a small multiplier must not see short lines alone.
    batches = [encoded[i : i + _BATCH] for i in range(0, len(encoded), _BATCH)]
    for index in np.random.default_rng(0).permutation(len(batches)):
        keys = _keys_of(model, down, sink, batches[index])[: wanted - seen].double()
        total += keys.T @ keys
        seen += len(keys)
        advance(len(keys))
        if seen >= wanted:
            break
    covariance = total / max(seen, 1)
    covariance += _RIDGE * covariance.diagonal().mean() * torch.eye(width, dtype=torch.float64)
    return KeyStatistics(torch.linalg.inv(covariance).float().numpy(), seen, wanted)


class _KeysSeen(Exception):  # noqa: N818 - not an error: ends a forward at the edit layer
    pass


def _keys_of(model: nn.Module, down: nn.Module, sink: int, batch: list[list[int]]) -> Tensor:
    """Return the keys [n, F] of a batch's real tokens."""
    length = max(map(len, batch))
    ids = torch.tensor([[sink, *row, *[sink] * (length - len(row))] for row in batch])
    real = torch.tensor([[False, *[True] * len(row), *[False] * (length - len(row))] for row in batch])
    caught: list[Tensor] = []

    def catch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        caught.append(inputs[0][real])
        raise _KeysSeen

    handle = down.register_forward_pre_hook(catch)
    try:
        model.model(ids, use_cache=False)
    except _KeysSeen:
        pass
    finally:
        handle.remove()
    return caught[0]
