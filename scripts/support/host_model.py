"""The bundle's source model in torch, FP32, cut at the edit layer as the bundle is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mobiedit.export.checkpoint import Checkpoint, find_source, load_checkpoint
from mobiedit.export.graphs import graph_specs
from mobiedit.export.segment import EditLayer
from mobiedit.export.weight_update import rotation_name
from mobiedit.runtime import Bundle
from mobiedit.runtime.decoder import Decoder
from mobiedit.runtime.errors import RequestError


@dataclass(frozen=True)
class HostModel:
    """The four modules that the bundle's graphs were exported from, and the embedding [V, D].

    Attributes
    ----------
    decoder
        The bundle's own, for the rotary factors, the mask and the sink token.
    """

    prefix: nn.Module
    edit: EditLayer
    suffix: nn.Module
    head: nn.Module
    embedding: Tensor
    decoder: Decoder

    @staticmethod
    def load(bundle: Bundle, model: str) -> HostModel:
        """Load the checkpoint of a bundle.

        Parameters
        ----------
        model
            As `mobiedit-export` takes it.

        Raises
        ------
        ExportError, RequestError
            As `matching_checkpoint` does.
        """
        return HostModel.of(bundle, matching_checkpoint(bundle, model))

    @staticmethod
    def of(bundle: Bundle, checkpoint: Checkpoint) -> HostModel:
        """Return the host's model of a bundle's checkpoint that is loaded already."""
        specs = graph_specs(checkpoint.model, checkpoint.shape, bundle.manifest.edit_layer, slots=1)
        prefix, edit, suffix, head = (specs[name].module for name in ("prefix", "edit", "suffix", "head"))
        return HostModel(prefix, edit, suffix, head, checkpoint.model.model.embed_tokens.weight, bundle.decoder)

    def hidden(self, ids: NDArray) -> Tensor:
        """Return the residual stream [B, T, D] behind the edit layer, without any edit, for whole rows [B, T]."""
        cache, _ = self.decoder.sink_caches(len(ids))
        inputs = (torch.from_numpy(part) for part in self.decoder.segment_inputs(cache, ids.shape[1]))
        residual = self.prefix(self.embedding[torch.from_numpy(ids)], *inputs)[0]
        return self.edit.mlp(residual)


def matching_checkpoint(bundle: Bundle, model: str) -> Checkpoint:
    """Load the checkpoint that a bundle was exported from; ``model`` is as `mobiedit-export` takes it.

    Raises
    ------
    ExportError
        When there is no such checkpoint.
    RequestError
        When the bundle is of another one, or of its weights rotated.
    """
    if rotation_name(bundle.manifest) is not None:
        raise RequestError(f"{bundle.path} has rotated weights, its source model has not: export it with --no-rotate")
    checkpoint = load_checkpoint(find_source(model))
    if checkpoint.base.weights_sha256 != bundle.manifest.base.weights_sha256:
        name = bundle.manifest.base.name
        raise RequestError(f"{bundle.path} was exported from other weights than {model}: give --model {name}")
    return checkpoint


def refuse_edits(bundle: Bundle, path: Path) -> None:
    """Refuse a bundle with edits, which the host's model does not have."""
    if bundle.edits():
        raise RequestError(f"{path} has edits, the source model has none: undo them, or use another bundle")
