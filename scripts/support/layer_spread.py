"""A batch of edits spread over several layers (MEMIT: Meng et al. 2023, arXiv 2210.07229, Algorithm 1), in torch.

Each fact has one target, the hidden state z behind the last layer; each layer on the way takes an equal share of what
is then still missing. The rows, k* and the closed form of one layer are the runtime's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mobiedit.runtime.closed_form import Batch, Method, coefficients, scaled_gram
from mobiedit.runtime.prompt_rows import PromptRows, padded
from mobiedit.runtime.rank_one import subject_key

from .host_model import HostModel

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Subjects:
    """What N facts have at the subject's last token, in the model as it is.

    Attributes
    ----------
    keys
        By layer, for each fact [R, F]: the keys of its rewriting rows, the bare prompt's first.
    hidden
        [N, D] residual stream behind the last layer, of the bare prompts.
    """

    keys: Mapping[int, Sequence[Floats]]
    hidden: Floats

    def mean_keys(self, layer: int) -> Floats:
        """[N, F] k* of each fact at a layer, as the runtime weighs the rows."""
        return np.stack([subject_key(keys) for keys in self.keys[layer]])


@dataclass(frozen=True)
class Spread:
    """How a batch is written.

    Attributes
    ----------
    layers
        Consecutive, the last one being that of the targets.
    method
        The closed form of each layer: MEMIT or EMMET.
    weight
        MEMIT's weight of what the layer does to text, relative to the leverages: the ridge of `coefficients`.
    """

    layers: Sequence[int]
    method: Method
    weight: float


def down_projections(host: HostModel) -> list[nn.Linear]:
    """Return the down projections up to the edit layer; the host's modules share them."""
    prefix: list[nn.Linear] = [mlp.down_proj for mlp in host.prefix.mlps]
    return [*prefix, host.edit.mlp.down_proj]


@torch.no_grad()
def read_subjects(
    host: HostModel, rows: Sequence[PromptRows], layers: Sequence[int], most: int | None = None
) -> Subjects:
    """Run the rewriting rows of facts up to the subject; what is behind it changes nothing there.

    Parameters
    ----------
    layers
        Those whose keys are wanted.
    most
        Rows of each fact that are run, from the bare prompt on. None takes all.
    """
    downs = down_projections(host)
    caught: dict[int, Tensor] = {}
    keys: dict[int, list[Floats]] = {layer: [] for layer in layers}
    hidden: list[Floats] = []

    def watch(layer: int) -> torch.utils.hooks.RemovableHandle:
        return downs[layer].register_forward_pre_hook(lambda _, inputs: caught.update({layer: inputs[0]}))

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(watch(layer).remove)
        for fact in rows:
            texts = [row.ids[: row.subject_index + 1] for row in fact.rewriting[:most]]
            ends = [len(text) - 1 for text in texts]
            hidden.append(host.hidden(padded(texts))[0, ends[0]].numpy())
            for layer in layers:
                keys[layer].append(caught[layer][range(len(ends)), ends].numpy())
    return Subjects(keys, np.stack(hidden))


def joint_update(keys: Floats, inverse_covariance: Floats, residuals: Floats, method: Method, weight: float) -> Doubles:
    """Return the change [D, F] of one layer's down projection for N edits at once.

    Parameters
    ----------
    keys
        [N, F].
    inverse_covariance
        [F, F] C^-1 of the layer's keys.
    residuals
        [N, D] what each value shall gain.
    method, weight
        As in `Spread`.
    """
    directions, leverages = leverages_of(keys, inverse_covariance)
    gram = scaled_gram(keys.astype(np.float64), directions, leverages)
    solved = coefficients(gram, leverages, [Batch(0, len(keys), method)], weight)
    return np.asarray(residuals.astype(np.float64).T @ (solved @ directions))


def leverages_of(keys: Floats, inverse_covariance: Floats) -> tuple[Doubles, Doubles]:
    """Return ``C^-1 k_n / g_n`` [N, F] and the leverages ``g_n = k_n^T C^-1 k_n`` [N]."""
    wide = keys.astype(np.float64)
    solved = wide @ inverse_covariance.astype(np.float64)
    leverages = np.einsum("nf,nf->n", wide, solved)
    return solved / leverages[:, None], leverages


@contextmanager
def written(
    host: HostModel,
    rows: Sequence[PromptRows],
    targets: Floats,
    statistics: Mapping[int, Floats],
    spread: Spread,
    unedited: Subjects,
) -> Iterator[None]:
    """Have a batch of edits in the host's weights, which are the former ones to the bit afterwards.

    Parameters
    ----------
    rows
        Of N facts.
    targets
        [N, D] the hidden states z that they shall have behind the last layer.
    statistics
        C^-1 [F, F] by layer.
    unedited
        The facts' subjects before any edit.
    """
    downs = down_projections(host)
    former = {layer: downs[layer].weight.detach().clone() for layer in spread.layers}
    try:
        now = unedited
        for place, layer in enumerate(spread.layers):
            if place:  # keys and hidden states have moved with the layer before
                now = read_subjects(host, rows, [layer])
            share = (targets - now.hidden) / (len(spread.layers) - place)
            change = joint_update(now.mean_keys(layer), statistics[layer], share, spread.method, spread.weight)
            with torch.no_grad():
                downs[layer].weight.add_(torch.from_numpy(change.astype(np.float32)))
        yield
    finally:
        for layer, weight in former.items():
            with torch.no_grad():
                downs[layer].weight.copy_(weight)


def fingerprint(host: HostModel) -> str:
    """Return the SHA-256 of all of the host's weights."""
    digest = hashlib.sha256()
    for module in (host.prefix, host.edit, host.suffix, host.head):
        for parameter in module.parameters():
            digest.update(parameter.detach().contiguous().numpy().data)
    return digest.hexdigest()
