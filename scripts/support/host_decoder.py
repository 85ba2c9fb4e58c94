"""The runtime's decoder on the source model's modules in torch, so that all that reads a bundle reads them as well."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from mobiedit.runtime.bundle_layout import SEGMENT_OUTPUTS, segment_names
from mobiedit.runtime.costs import CostMeter
from mobiedit.runtime.decoder import Decoder
from mobiedit.runtime.execution import Feeds, Fetched

from .host_model import HostModel


@dataclass(frozen=True)
class HostGraph:
    """A module under the names that its graph has for inputs and outputs; a `Runnable`."""

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @torch.no_grad()
    def run(self, feeds: Feeds, meter: CostMeter | None = None) -> Fetched:
        """Evaluate the module with the weights that it has now."""
        out = self.module(*(torch.from_numpy(feeds[name]) for name in self.inputs))
        tensors = out if isinstance(out, tuple) else (out,)
        return {name: tensor.numpy() for name, tensor in zip(self.outputs, tensors, strict=True)}

    def placement(self) -> dict[str, int]:
        """Return nothing: no provider runs a node."""
        return {}


def host_decoder(host: HostModel) -> Decoder:
    """Return the decoder whose graphs are the host's modules.

    The bundle's constants stay: no change of a weight reaches the sink token, whose K and V are among them.
    """
    split = host.decoder.prefix_layers
    layers = {"prefix": range(split), "suffix": range(split, host.decoder.parts.shape.n_layers)}
    names = {name: segment_names(output, layers[name]) for name, output in SEGMENT_OUTPUTS.items()}
    names["edit"] = ("residual", "directions", "deltas", "gates"), ("hidden_out", "key", "value")
    names["head"] = ("hidden",), ("logits",)
    modules = {"prefix": host.prefix, "edit": host.edit, "suffix": host.suffix, "head": host.head}
    graphs = {name: HostGraph(name, module, *names[name]) for name, module in modules.items()}
    return Decoder(replace(host.decoder.parts, **graphs), CostMeter())
