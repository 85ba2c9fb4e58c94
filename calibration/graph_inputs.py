"""Record what each graph is fed on calibration text: the data from which static activation ranges are taken.

The feeds lie in files, one a run, so that the memory does not grow with the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np

from mobiedit.runtime.costs import CostMeter
from mobiedit.runtime.decoder import Decoder, DecoderParts, Slots
from mobiedit.runtime.execution import Feeds, Fetched, Runnable

_RECORDED = ("prefix", "suffix", "head")
_MAX_TOKENS = 48
_LARGEST_DELTA = 4.0  # of the values' mean norm: the clamp of the search


class StoredFeeds(Sequence[Feeds]):
    """Feeds of a graph in a folder, each read when it is asked for."""

    def __init__(self, folder: Path, graph: str) -> None:
        self._folder, self._graph = folder, graph
        self._count = 0

    def __len__(self) -> int:
        """Return how many there are."""
        return self._count

    @overload
    def __getitem__(self, index: int) -> Feeds: ...

    @overload
    def __getitem__(self, index: slice) -> list[Feeds]: ...

    def __getitem__(self, index: int | slice) -> Feeds | list[Feeds]:
        """Return one of them, or some."""
        places = range(self._count)[index]
        return self._read(places) if isinstance(places, int) else [self._read(place) for place in places]

    def add(self, feeds: Feeds) -> None:
        """Write one more."""
        with self._file(self._count).open("wb") as file:
            np.savez(file, **feeds)
        self._count += 1

    def _read(self, place: int) -> Feeds:
        with np.load(self._file(place)) as arrays:
            return dict(arrays)

    def _file(self, place: int) -> Path:
        return self._folder / f"{self._graph}.{place}.npz"


@dataclass(frozen=True)
class RecordedInputs:
    """Feeds of the three quantised graphs."""

    prefix: StoredFeeds
    suffix: StoredFeeds
    head: StoredFeeds


class _Recorder:
    """Stands in front of a graph and keeps what it is fed."""

    def __init__(self, graph: Runnable, feeds: StoredFeeds) -> None:
        self._graph = graph
        self.name, self.inputs, self.outputs = graph.name, graph.inputs, graph.outputs
        self.feeds = feeds

    def run(self, feeds: Feeds, meter: CostMeter | None = None) -> Fetched:
        self.feeds.add(feeds)
        return self._graph.run(feeds, meter)

    def placement(self) -> dict[str, int]:
        return self._graph.placement()


def record_graph_inputs(
    parts: DecoderParts,
    texts: Sequence[Sequence[int]],
    slots: int,
    folder: Path,
    seed: int = 0,
    advance: Callable[[int], None] = lambda texts: None,
) -> RecordedInputs:
    """Run texts through the FP32 graphs in two pieces, so that caches are seen too.

    In the suffix, one token of each piece carries a random delta as an edit would add, up to the search's clamp:
    ranges from plain text alone would clip it.

    Parameters
    ----------
    folder
        Where the feeds are written.
    """
    recorders = {name: _Recorder(getattr(parts, name), StoredFeeds(folder, name)) for name in _RECORDED}
    decoder = Decoder(replace(parts, **recorders), CostMeter())
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
    return RecordedInputs(**{name: recorder.feeds for name, recorder in recorders.items()})
