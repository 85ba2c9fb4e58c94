"""Record what each graph is fed on calibration text: the data from which static activation ranges are taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mobiedit.runtime.costs import CostMeter
from mobiedit.runtime.decoder import Decoder, DecoderParts, Slots
from mobiedit.runtime.execution import Feeds, Fetched, Runnable

_MAX_TOKENS = 48
_LARGEST_DELTA = 4.0  # of the values' mean norm: the clamp of the search


@dataclass(frozen=True)
class RecordedInputs:
    """Feeds of the three quantised graphs."""

    prefix: list[Feeds]
    suffix: list[Feeds]
    head: list[Feeds]


class _Recorder:
    """Stands in front of a graph and keeps what it is fed."""

    def __init__(self, graph: Runnable) -> None:
        self._graph = graph
        self.name, self.inputs, self.outputs = graph.name, graph.inputs, graph.outputs
        self.feeds: list[Feeds] = []

    def run(self, feeds: Feeds, meter: CostMeter | None = None) -> Fetched:
        self.feeds.append(feeds)
        return self._graph.run(feeds, meter)

    def placement(self) -> dict[str, int]:
        return self._graph.placement()


def record_graph_inputs(
    parts: DecoderParts,
    texts: Sequence[Sequence[int]],
    slots: int,
    seed: int = 0,
    advance: Callable[[int], None] = lambda texts: None,
) -> RecordedInputs:
    """Run texts through the FP32 graphs in two pieces, so that caches are seen too.

    In the suffix, one token of each piece carries a random delta as an edit would add, up to the search's clamp:
    ranges from plain text alone would clip it.
    """
    prefix, suffix, head = _Recorder(parts.prefix), _Recorder(parts.suffix), _Recorder(parts.head)
    decoder = Decoder(replace(parts, prefix=prefix, suffix=suffix, head=head), CostMeter())
    rng = np.random.default_rng(seed)
    empty = Slots.empty(slots, parts.shape)
    for text in texts:
        ids = np.array([text[:_MAX_TOKENS]], np.int64)
        prefix_cache, suffix_cache = decoder.sink_caches(1)
        middle = max(1, ids.shape[1] // 2)
        for piece in (ids[:, :middle], ids[:, middle:]):
            if piece.shape[1] == 0:
                continue
            residual, prefix_new = decoder.run_prefix(piece, prefix_cache)
            edited = decoder.run_edit(residual, empty)
            norm = float(np.linalg.norm(edited.values, axis=-1).mean())
            delta = rng.standard_normal(parts.shape.width).astype(np.float32)
            delta *= rng.uniform(0, _LARGEST_DELTA) * norm / np.linalg.norm(delta)
            hidden = edited.hidden.copy()
            hidden[0, rng.integers(piece.shape[1])] += delta
            final, suffix_new = decoder.run_suffix(hidden, suffix_cache)
            decoder.run_head(final[0])
            prefix_cache, suffix_cache = prefix_cache.extended(prefix_new), suffix_cache.extended(suffix_new)
        advance(1)
    return RecordedInputs(prefix.feeds, suffix.feeds, head.feeds)
