"""The source model's own graphs, run by torch: the host measures on them, before any graph is written."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mobiedit.runtime.bundle_layout import graph_file
from mobiedit.runtime.costs import CostMeter
from mobiedit.runtime.execution import Feeds, Fetched

from .graphs import GraphSpec


class SourceGraph:
    """A module of the source model with the interface of `mobiedit.runtime.execution.Graph`."""

    def __init__(self, name: str, spec: GraphSpec) -> None:
        self.name, self.inputs, self.outputs = graph_file(name), tuple(spec.inputs), spec.outputs
        self._module = spec.module

    @torch.no_grad()
    def run(self, feeds: Feeds, meter: CostMeter | None = None) -> Fetched:
        """Evaluate the module; the host's work is not counted."""
        del meter
        values = self._module(*(torch.from_numpy(feeds[name]) for name in self.inputs))
        given = values if isinstance(values, tuple) else (values,)
        return {name: value.numpy() for name, value in zip(self.outputs, given, strict=True)}

    def placement(self) -> dict[str, int]:
        """Return nothing: no execution provider runs it."""
        return {}


def source_graphs(specs: Mapping[str, GraphSpec]) -> dict[str, SourceGraph]:
    """Return a model's graphs by name."""
    return {name: SourceGraph(name, spec) for name, spec in specs.items()}
