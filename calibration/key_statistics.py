"""The covariance of an edit layer's keys, C = E[k k^T], from a small number of key vectors.

MEMIT took 44 million keys; ``dynamic_multiplier x F`` of them do as well (Gupta et al. 2025, arXiv 2506.04226).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
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
    layers: Sequence[int],
    sink: int,
    lines: Sequence[str],
    multiplier: float,
    advance: Callable[[int], None] = lambda keys: None,
) -> dict[int, KeyStatistics]:
    """Run calibration text once, up to the deepest of some layers, and sum the outer products of each one's keys.

    The sums of all layers are held at once, 8 F^2 bytes each: FP32 sums leave errors that the inverse makes visible,
    and four of these are less than the copy of the weights that later stages hold.

    Parameters
    ----------
    layers
        The layers whose statistics are wanted.
    sink
        The token in front of every text; its own key is left out.
    multiplier
        Keys wanted, as a multiple of the MLP's width F.
    advance
        Told the number of keys after each batch.

    Returns
    -------
    dict
        The statistics by layer.
    """
    downs = {layer: model.model.layers[layer].mlp.down_proj for layer in sorted(layers)}
    deepest = max(layers)
    width = downs[deepest].in_features
    wanted = max(1, round(multiplier * width))
    totals = {layer: torch.zeros(width, width, dtype=torch.float64) for layer in downs}
    seen = 0
    encoded = sorted((tokenizer(line, add_special_tokens=False).input_ids[:_MAX_TOKENS] for line in lines), key=len)
    # Like lengths together, but a spread of lengths early: a small multiplier must not see short lines alone.
    batches = [encoded[i : i + _BATCH] for i in range(0, len(encoded), _BATCH)]
    for index in np.random.default_rng(0).permutation(len(batches)):
        caught = _keys_of(model, downs, sink, batches[index])
        count = min(len(caught[deepest]), wanted - seen)
        for layer, keys in caught.items():
            chosen = keys[:count].double()
            totals[layer].addmm_(chosen.T, chosen)
        seen += count
        advance(count)
        if seen >= wanted:
            break
    return {layer: KeyStatistics(_inverse(totals.pop(layer), seen), seen, wanted) for layer in downs}


def _inverse(total: Tensor, seen: int) -> NDArray[np.float32]:
    """Invert a covariance in its own memory, by Cholesky: at a width of 11,008 a copy is a gigabyte."""
    covariance = total.div_(max(seen, 1)).mT  # in LAPACK's order of axes, and symmetric: it works in place
    covariance.diagonal().add_(_RIDGE * covariance.diagonal().mean())
    torch.linalg.cholesky(covariance, out=covariance)
    torch.cholesky_inverse(covariance, out=covariance)
    return covariance.mT.float().numpy()


class _KeysSeen(Exception):  # noqa: N818 - not an error: ends a forward at the deepest layer
    pass


def _keys_of(model: nn.Module, downs: dict[int, nn.Module], sink: int, batch: list[list[int]]) -> dict[int, Tensor]:
    """Return the keys [n, F] of a batch's real tokens by layer."""
    length = max(map(len, batch))
    ids = torch.tensor([[sink, *row, *[sink] * (length - len(row))] for row in batch])
    real = torch.tensor([[False, *[True] * len(row), *[False] * (length - len(row))] for row in batch])
    caught: dict[int, Tensor] = {}

    def catch(layer: int, inputs: tuple[Tensor, ...]) -> None:
        caught[layer] = inputs[0][real]
        if len(caught) == len(downs):
            raise _KeysSeen

    with ExitStack() as hooks, suppress(_KeysSeen):
        for layer, down in downs.items():
            handle = down.register_forward_pre_hook(lambda _, inputs, layer=layer: catch(layer, inputs))
            hooks.callback(handle.remove)
        model.model(ids, use_cache=False)
    return caught
