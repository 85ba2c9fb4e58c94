"""What a bundle's graphs are fed on real text, and what they return: recorded on the CPU, to be run again elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mobiedit.runtime import Bundle
from mobiedit.runtime.bundle_layout import GRAPHS
from mobiedit.runtime.costs import CostMeter
from mobiedit.runtime.decoder import Decoder, Floats, Slots
from mobiedit.runtime.edit_problem import prefill
from mobiedit.runtime.execution import Feeds, Fetched, Runnable
from mobiedit.runtime.prompt_rows import PromptRows


@dataclass(frozen=True)
class Run:
    """One run of a graph."""

    feeds: Feeds
    fetched: Fetched


@dataclass
class RecordedGraph:
    """Stands in front of a graph and keeps its runs."""

    graph: Runnable
    runs: list[Run] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.graph.name

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.graph.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.graph.outputs

    def run(self, feeds: Feeds, meter: CostMeter | None = None) -> Fetched:
        fetched = self.graph.run(feeds, meter)
        self.runs.append(Run(feeds, fetched))
        return fetched

    def placement(self) -> dict[str, int]:
        return self.graph.placement()


@dataclass(frozen=True)
class Recording:
    """The runs of each graph by its name, and the logits [T, V] of each text."""

    runs: dict[str, list[Run]]
    logits: list[Floats]


def record(bundle: Bundle, texts: Sequence[Sequence[int]], rows: PromptRows) -> Recording:
    """Run texts and the rows of an edit through a bundle, without any edit.

    Parameters
    ----------
    texts
        Tokens, two at least; each is read as `text_logits` does.
    rows
        They run as one batch, as an edit begins.
    """
    decoder = bundle.decoder
    graphs = {name: RecordedGraph(getattr(decoder.parts, name)) for name in GRAPHS}
    recorded = Decoder(replace(decoder.parts, **graphs), CostMeter())
    slots = Slots.empty(bundle.manifest.slots, bundle.manifest.shape)
    logits = [text_logits(recorded, slots, text) for text in texts]
    filled = prefill(recorded, rows, slots)
    recorded.run_head(filled.final[np.arange(len(rows.all)), rows.lengths - 1])
    return Recording({name: graph.runs for name, graph in graphs.items()}, logits)


def text_logits(decoder: Decoder, slots: Slots, text: Sequence[int]) -> Floats:
    """Return the logits [T, V] behind each token: all tokens but the last are read at once, then the last alone.

    So the graphs run in both shapes of generation, the prompt's and that of a token behind a cache.
    """
    ids = np.array([text], np.int64)
    prefix_cache, suffix_cache = decoder.sink_caches(1)
    logits = []
    for piece in (ids[:, :-1], ids[:, -1:]):
        residual, prefix_new = decoder.run_prefix(piece, prefix_cache)
        final, suffix_new = decoder.run_suffix(decoder.run_edit(residual, slots).hidden, suffix_cache)
        logits.append(decoder.run_head(final[0]))
        prefix_cache, suffix_cache = prefix_cache.extended(prefix_new), suffix_cache.extended(suffix_new)
    return np.concatenate(logits)
