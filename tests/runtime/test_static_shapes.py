"""Fixed shapes: the same numbers as the symbolic graph, whatever is padded and cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mobiedit.runtime.bundle_layout import SEGMENT_OUTPUTS, graph_file, segment_names
from mobiedit.runtime.configuration import ExecutionConfig
from mobiedit.runtime.costs import CostMeter
from mobiedit.runtime.decoder import Decoder
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.execution import Feeds, Fetched, Graph
from mobiedit.runtime.manifest import Manifest
from mobiedit.runtime.rotary import attention_mask, rotary_factors
from mobiedit.runtime.static_shapes import StaticRows, StaticSegment, Variant

VARIANTS = tuple(Variant(*sizes) for sizes in product((1, 3), (1, 4, 8), (2, 6)))
# FP32 sums in another order, relative to the largest number; what the mask hides weighs exp(-100), which is nothing.
TOLERANCE = 1e-5


def assert_same(found: Fetched, wanted: Fetched) -> None:
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert found[name].shape == value.shape
        np.testing.assert_allclose(found[name], value, rtol=0, atol=TOLERANCE * np.abs(value).max())


@pytest.fixture(scope="module")
def open_graph(fp32_bundle: Path) -> Callable[[str], Callable[[Mapping[str, int]], Graph]]:
    """Return a function that gives what opens a graph with axes fixed, on the CPU."""
    return lambda name: lambda axes: Graph(fp32_bundle / graph_file(name), ExecutionConfig(threads=1), axes=axes)


@pytest.fixture(scope="module")
def segments(
    manifest: Manifest, open_graph: Callable[[str], Callable[[Mapping[str, int]], Graph]]
) -> dict[str, StaticSegment]:
    layers = {"prefix": range(manifest.edit_layer + 1), "suffix": range(manifest.edit_layer + 1, 4)}
    return {
        name: StaticSegment(
            name, *segment_names(SEGMENT_OUTPUTS[name], layers[name]), VARIANTS, manifest.mask_value, open_graph(name)
        )
        for name in layers
    }


@pytest.fixture(scope="module")
def feeds(decoder: Decoder, manifest: Manifest) -> Callable[..., Feeds]:
    """Return a function that draws what a segment is fed: rows behind caches of different lengths."""

    def draw(segment: StaticSegment, seed: int, batch: int, tokens: int, past: int) -> Feeds:
        rng, shape = np.random.default_rng(seed), manifest.shape

        def normal(*sizes: int) -> NDArray[np.float32]:
            return rng.standard_normal(sizes).astype(np.float32)

        lengths = rng.integers(1, past + 1, batch)
        factors = rotary_factors(lengths[:, None] + np.arange(tokens), decoder.parts.inverse_frequencies)
        mask = attention_mask(lengths, past, tokens, manifest.mask_value)
        caches = [normal(batch, shape.n_kv_heads, past, shape.head_dim) for _ in segment.inputs[4:]]
        values = [normal(batch, tokens, shape.width), *factors, mask, *caches]
        return dict(zip(segment.inputs, values, strict=True))

    return draw


@pytest.mark.parametrize("name", ["prefix", "suffix"])
@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), batch=st.integers(1, 7), tokens=st.integers(1, 8), past=st.integers(1, 6))
def test_segment_gives_the_symbolic_graphs_numbers_when_shapes_are_fixed(
    name: str,
    seed: int,
    batch: int,
    tokens: int,
    past: int,
    segments: dict[str, StaticSegment],
    feeds: Callable[..., Feeds],
    decoder: Decoder,
) -> None:
    given_feeds = feeds(segments[name], seed, batch, tokens, past)
    assert_same(segments[name].run(given_feeds), getattr(decoder.parts, name).run(given_feeds))


@pytest.mark.parametrize("name", ["prefix", "suffix"])
def test_segment_has_the_symbolic_graphs_names_when_shapes_are_fixed(
    name: str, segments: dict[str, StaticSegment], decoder: Decoder
) -> None:
    symbolic = getattr(decoder.parts, name)
    assert (segments[name].inputs, segments[name].outputs) == (symbolic.inputs, symbolic.outputs)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), batch=st.integers(1, 5), tokens=st.integers(1, 9))
def test_edit_layer_and_head_give_the_symbolic_graphs_numbers_when_shapes_are_fixed(
    seed: int,
    batch: int,
    tokens: int,
    open_graph: Callable[[str], Callable[[Mapping[str, int]], Graph]],
    decoder: Decoder,
    manifest: Manifest,
) -> None:
    rng, shape, parts = np.random.default_rng(seed), manifest.shape, decoder.parts
    sizes = {
        "directions": (manifest.slots, shape.mlp_width),
        "deltas": (manifest.slots, shape.width),
        "gates": (4, manifest.slots),
    }
    drawn = {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    drawn["residual"] = rng.standard_normal((batch, tokens, shape.width)).astype(np.float32)
    edit = StaticRows(
        "edit",
        parts.edit.inputs,
        parts.edit.outputs,
        (1, 4, 16),
        lambda n: {"batch": 1, "tokens": n},
        open_graph("edit"),
    )
    assert_same(edit.run(drawn), parts.edit.run(drawn))
    head = StaticRows("head", ("hidden",), ("logits",), (1, 4), lambda n: {"rows": n}, open_graph("head"))
    hidden = {"hidden": drawn["residual"][0]}
    assert_same(head.run(hidden), parts.head.run(hidden))


@pytest.mark.parametrize(
    ("run", "chosen"),
    [
        ((1, 1, 1), (1, 1, 2)),
        ((1, 2, 2), (1, 4, 2)),
        ((1, 4, 3), (1, 4, 6)),
        ((2, 1, 1), (3, 1, 2)),  # one dispatch with a row of zeros rather than two
        ((7, 5, 6), (3, 8, 6)),
    ],
)
def test_variant_takes_a_run_in_the_fewest_dispatches_and_is_the_smallest_of_those(
    run: tuple[int, int, int], chosen: tuple[int, int, int], segments: dict[str, StaticSegment]
) -> None:
    assert segments["suffix"].variant(*run) == Variant(*chosen)


@pytest.mark.parametrize(("tokens", "past"), [(9, 1), (1, 7)])
def test_run_is_refused_in_one_line_when_no_variant_is_long_enough(
    tokens: int, past: int, segments: dict[str, StaticSegment], feeds: Callable[..., Feeds]
) -> None:
    with pytest.raises(
        RequestError, match=rf"\A{tokens} tokens behind {past} fit no shape of [^\n]+: shorten the text"
    ):
        segments["suffix"].run(feeds(segments["suffix"], 0, 1, tokens, past))


def test_sessions_are_made_when_first_needed_and_kept(
    segments: dict[str, StaticSegment],
    feeds: Callable[..., Feeds],
    open_graph: Callable[[str], Callable[[Mapping[str, int]], Graph]],
) -> None:
    made: list[Mapping[str, int]] = []

    def note(axes: Mapping[str, int]) -> Graph:
        made.append(axes)
        return open_graph("suffix")(axes)

    suffix = segments["suffix"]
    segment = StaticSegment("suffix", suffix.inputs, suffix.outputs, VARIANTS, -100.0, note)
    assert made == []
    for batch in (1, 1, 7, 6):
        segment.run(feeds(segment, batch, batch, 3, 2))
    assert made == [
        {"batch": 1, "tokens": 4, "past": 2, "total": 6},
        {"batch": 3, "tokens": 4, "past": 2, "total": 6},
    ]


def test_meter_counts_every_dispatch_with_its_padding_when_the_batch_is_cut(
    segments: dict[str, StaticSegment], feeds: Callable[..., Feeds], manifest: Manifest
) -> None:
    meter, shape = CostMeter(), manifest.shape
    segments["suffix"].run(feeds(segments["suffix"], 0, 7, 3, 2), meter)
    batch, tokens, past = 3, 4, 2
    hidden, factors, mask = tokens * shape.width, 2 * tokens * shape.head_dim, tokens * (past + tokens)
    caches = 4 * shape.n_kv_heads * shape.head_dim  # K and V of two layers
    numbers = batch * (2 * hidden + factors + mask + caches * (past + tokens))
    assert (meter.dispatches, meter.io_bytes) == (3, 3 * 4 * numbers)
