"""Which fixed shapes a bundle's four graphs have on an NPU.

Each shape that is used is compiled and holds the graph's weights once more, so they are few and far apart: lengths grow
fourfold, and a run is padded to the next. A batch is one row (a text that is read or written), the rows of one delta
(the prefill, a single forward), or those of four deltas (a batch of the search). Those that an export compiles are
fewer still, since each is a file with the weights: one for every kind of run, and one that is long enough for any.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

from .bundle_layout import SEGMENT_OUTPUTS, graph_file, segment_names
from .configuration import ExecutionConfig
from .contexts import Shapes, SocContexts
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


def all_shapes(rows: int, context: int) -> Shapes:
    """Return every shape of the four graphs; see `segment_variants`."""
    segment = tuple(variant.axes for variant in segment_variants(rows, context))
    return {"prefix": segment, "suffix": segment, **_token_shapes(_EDIT_TOKENS, _HEAD_TOKENS)}


def compiled_shapes(rows: int, context: int) -> Shapes:
    """Return the shapes that an export compiles; the longest are those of `all_shapes`, so that all texts fit.

    Parameters
    ----------
    rows, context
        As in `segment_variants`.
    """
    texts = [(1, 1, 256), (1, 1, 1024), (1, 64, 256), (1, 256, 1024)]  # writing, reading
    prefill = (rows, 64, 16)
    search = [(rows, 16, 64), (_DELTAS * rows, 16, 64)]  # the suffix alone

    def axes(sizes: list[tuple[int, int, int]]) -> tuple[dict[str, int], ...]:
        cut = dict.fromkeys(Variant(batch, min(tokens, context), min(past, context)) for batch, tokens, past in sizes)
        return tuple(variant.axes for variant in cut)

    segments = {"prefix": axes([*texts, prefill]), "suffix": axes([*texts, prefill, *search])}
    return {**segments, **_token_shapes((1, 64, 256), (1, 64))}


def _token_shapes(edit: tuple[int, ...], head: tuple[int, ...]) -> Shapes:
    return {
        "edit": tuple({"batch": 1, "tokens": tokens} for tokens in edit),
        "head": tuple({"rows": tokens} for tokens in head),
    }


def static_graphs(
    folder: Path,
    shape: ModelShape,
    edit_layer: int,
    mask_value: float,
    rows: int,
    config: ExecutionConfig,
    contexts: SocContexts | None = None,
) -> dict[str, Runnable]:
    """Return a bundle's graphs in fixed shapes, by name. No session is made before it is needed.

    Parameters
    ----------
    contexts
        What was compiled for the SoC at export: then no session compiles anything.
    """
    shapes = contexts.shapes if contexts else all_shapes(rows, shape.context)

    def open_graph(name: str) -> OpenGraph:
        if contexts:
            return lambda axes: Graph(folder / contexts.wrapper(name, axes), config)
        return lambda axes: Graph(folder / graph_file(name), config, axes=axes)

    def segment(name: str, layers: range) -> StaticSegment:
        names = segment_names(SEGMENT_OUTPUTS[name], layers)
        variants = [Variant(axes["batch"], axes["tokens"], axes["past"]) for axes in shapes[name]]
        return StaticSegment(graph_file(name), *names, variants, mask_value, open_graph(name))

    return {
        "prefix": segment("prefix", range(edit_layer + 1)),
        "edit": StaticRows(
            graph_file("edit"),
            ("residual", "directions", "deltas", "gates"),
            ("hidden_out", "key", "value"),
            [axes["tokens"] for axes in shapes["edit"]],
            lambda tokens: {"batch": 1, "tokens": tokens},
            open_graph("edit"),
        ),
        "suffix": segment("suffix", range(edit_layer + 1, shape.n_layers)),
        "head": StaticRows(
            graph_file("head"),
            ("hidden",),
            ("logits",),
            [axes["rows"] for axes in shapes["head"]],
            lambda tokens: {"rows": tokens},
            open_graph("head"),
        ),
    }
