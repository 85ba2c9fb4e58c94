"""Which fixed shapes a bundle's four graphs have on an NPU.

Each shape that is used is compiled and holds the graph's weights once more, so they are few and far apart: lengths grow
fourfold, and a run is padded to the next. A batch is one row (a text that is read or written), the rows of one delta
(the prefill, a single forward), or those of four deltas (a batch of the search).
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

from .bundle_layout import SEGMENT_OUTPUTS, graph_file, segment_names
from .configuration import ExecutionConfig
from .execution import Graph, Runnable
from .manifest import ModelShape
from .static_shapes import OpenGraph, StaticRows, StaticSegment, Variant

_TOKENS = (1, 16, 64, 256)
_PASTS = (16, 64, 256, 1024)
_DELTAS = 4
_EDIT_TOKENS = (1, 16, 64, 256)
_HEAD_TOKENS = (1, 16, 64)  # logits are wide: 64 x 150,000 x 4 bytes is 38 MB


def segment_variants(rows: int, context: int) -> tuple[Variant, ...]:
    """Return the shapes of prefix and suffix.

    Parameters
    ----------
    rows
        Of an edit.
    context
        The bundle's longest text, which no shape exceeds.
    """
    batches = {1, rows, _DELTAS * rows}
    tokens, pasts = ({min(length, context) for length in lengths} for lengths in (_TOKENS, _PASTS))
    return tuple(Variant(*sizes) for sizes in product(sorted(batches), sorted(tokens), sorted(pasts)))


def static_graphs(
    folder: Path, shape: ModelShape, edit_layer: int, mask_value: float, rows: int, config: ExecutionConfig
) -> dict[str, Runnable]:
    """Return a bundle's graphs in fixed shapes, by name. No session is made before it is needed."""
    variants = segment_variants(rows, shape.context)

    def open_graph(name: str) -> OpenGraph:
        return lambda axes: Graph(folder / graph_file(name), config, axes=axes)

    def segment(name: str, layers: range) -> StaticSegment:
        names = segment_names(SEGMENT_OUTPUTS[name], layers)
        return StaticSegment(graph_file(name), *names, variants, mask_value, open_graph(name))

    return {
        "prefix": segment("prefix", range(edit_layer + 1)),
        "edit": StaticRows(
            graph_file("edit"),
            ("residual", "directions", "deltas"),
            ("hidden_out", "key", "value"),
            _EDIT_TOKENS,
            lambda tokens: {"batch": 1, "tokens": tokens},
            open_graph("edit"),
        ),
        "suffix": segment("suffix", range(edit_layer + 1, shape.n_layers)),
        "head": StaticRows(
            graph_file("head"),
            ("hidden",),
            ("logits",),
            _HEAD_TOKENS,
            lambda tokens: {"rows": tokens},
            open_graph("head"),
        ),
    }
