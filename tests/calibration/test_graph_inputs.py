"""What the graphs are fed for their ranges: every input, caches that hold text, a residual that an edit has moved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from mobiedit.calibration.graph_inputs import Feeds, RecordedInputs, record_graph_inputs
from mobiedit.calibration.text import default_text
from mobiedit.runtime import open_bundle
from mobiedit.runtime.bundle_parts import cpu_graphs, load_parts
from mobiedit.runtime.configuration import ExecutionConfig
from mobiedit.runtime.costs import CostMeter
from mobiedit.runtime.decoder import Decoder, DecoderParts, Slots

SLOTS = 3
LINES = default_text()[:5]
CLAMP = 4.0  # the search lets a delta grow to so many norms of the value


@pytest.fixture(scope="module")
def parts(fp32_bundle: Path) -> DecoderParts:
    manifest = open_bundle(fp32_bundle, verify=False).manifest
    graphs = cpu_graphs(fp32_bundle, ExecutionConfig(), fold_weights=False)
    return load_parts(fp32_bundle, manifest.shape, manifest.edit_layer, manifest.mask_value, graphs)


@pytest.fixture(scope="module")
def texts(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    return [tokenizer(line).input_ids[:40] for line in LINES]


@pytest.fixture(scope="module")
def recorded(parts: DecoderParts, texts: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> RecordedInputs:
    return record_graph_inputs(parts, texts, SLOTS, tmp_path_factory.mktemp("feeds"))


def assert_equal(one: Sequence[Feeds], other: Sequence[Feeds]) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name])


@pytest.mark.parametrize("graph", ["prefix", "suffix", "head"])
def test_feeds_are_the_graphs_inputs_when_recorded(graph: str, recorded: RecordedInputs, parts: DecoderParts) -> None:
    feeds: Sequence[Feeds] = getattr(recorded, graph)
    assert len(feeds) == 2 * len(LINES)  # two pieces of each text
    for feed in feeds:
        assert tuple(feed) == getattr(parts, graph).inputs
        assert {value.dtype for value in feed.values()} == {np.dtype(np.float32)}
        assert getattr(parts, graph).run(feed)


def test_pieces_are_the_whole_text_when_recorded(
    recorded: RecordedInputs, parts: DecoderParts, texts: list[list[int]]
) -> None:
    for text, first, second in zip(texts, recorded.prefix[::2], recorded.prefix[1::2], strict=True):
        hidden = np.concatenate([first["hidden"], second["hidden"]], axis=1)
        np.testing.assert_array_equal(hidden[0], parts.embedding[text])
        assert first["hidden"].shape[1] == len(text) // 2


def test_caches_hold_the_first_piece_when_the_second_is_read(
    recorded: RecordedInputs, parts: DecoderParts, texts: list[list[int]]
) -> None:
    for segment, layers in ((recorded.prefix, (0, 1)), (recorded.suffix, (2, 3))):
        for text, first, second in zip(texts, segment[::2], segment[1::2], strict=True):
            for layer in layers:
                for index, part in enumerate("kv"):
                    sink = parts.sink[2 * layer + index]
                    name = f"past_{part}.{layer}"
                    np.testing.assert_array_equal(first[name], sink)
                    assert second[name].shape[2] == 1 + len(text) // 2
                    np.testing.assert_array_equal(second[name][:, :, :1], sink)
                    tokens = second[name][0, :, 1:]
                    assert np.abs(tokens).min(axis=-1).max() > 0
                    # Each token has K and V of its own: none is a copy of the one before it.
                    assert (np.abs(np.diff(tokens, axis=1)).max(axis=-1) > 0).all()


def test_second_piece_sees_what_the_first_wrote_when_read(recorded: RecordedInputs, parts: DecoderParts) -> None:
    first, second = recorded.suffix[:2]
    written = parts.suffix.run(first)
    for layer in (2, 3):
        for part in "kv":
            np.testing.assert_array_equal(second[f"past_{part}.{layer}"][:, :, 1:], written[f"new_{part}.{layer}"])


def test_one_token_is_moved_when_the_suffix_reads_a_piece(
    recorded: RecordedInputs, parts: DecoderParts, texts: list[list[int]]
) -> None:
    decoder = Decoder(parts, CostMeter())
    empty = Slots.empty(SLOTS, parts.shape)
    lengths = []
    for text, first in zip(texts, recorded.suffix[::2], strict=True):
        ids = np.array([text[: len(text) // 2]], np.int64)
        plain = decoder.run_edit(decoder.run_prefix(ids, decoder.sink_caches(1)[0])[0], empty)
        moved = np.linalg.norm(first["hidden"] - plain.hidden, axis=-1)[0]
        assert np.count_nonzero(moved) == 1
        lengths.append(moved.max() / np.linalg.norm(plain.values, axis=-1).mean())
    assert max(lengths) <= CLAMP * (1 + 1e-5)  # rounding of the FP32 sum
    assert max(lengths) > CLAMP / 4  # not all of them are small
    assert len(set(lengths)) == len(lengths)


def test_head_reads_what_the_suffix_wrote_when_recorded(recorded: RecordedInputs, parts: DecoderParts) -> None:
    for suffix, head in zip(recorded.suffix, recorded.head, strict=True):
        np.testing.assert_array_equal(parts.suffix.run(suffix)["hidden_out"][0], head["hidden"])


@pytest.mark.parametrize("graph", ["prefix", "suffix", "head"])
def test_feeds_are_the_same_when_seed_is_the_same(
    graph: str, recorded: RecordedInputs, parts: DecoderParts, texts: list[list[int]], tmp_path: Path
) -> None:
    assert_equal(getattr(recorded, graph), getattr(record_graph_inputs(parts, texts, SLOTS, tmp_path), graph))


def test_only_what_follows_the_edit_differs_when_seed_is_another(
    recorded: RecordedInputs, parts: DecoderParts, texts: list[list[int]], tmp_path: Path
) -> None:
    other = record_graph_inputs(parts, texts, SLOTS, tmp_path, seed=1)
    assert_equal(recorded.prefix, other.prefix)
    for one, two in zip(recorded.suffix, other.suffix, strict=True):
        assert (one["hidden"] != two["hidden"]).any()


def test_feeds_are_in_files_alone_when_recorded(recorded: RecordedInputs) -> None:
    first = recorded.suffix[0]
    first["hidden"][:] = 0  # what was read is the reader's own
    assert (recorded.suffix[0]["hidden"] != 0).any()
    assert_equal(recorded.suffix[-1:], list(recorded.suffix)[-1:])
    with pytest.raises(IndexError):
        recorded.suffix[len(recorded.suffix)]


def test_text_is_one_piece_when_it_has_one_token(parts: DecoderParts, tmp_path: Path) -> None:
    result = record_graph_inputs(parts, [[77]], SLOTS, tmp_path)
    assert len(result.prefix) == len(result.suffix) == len(result.head) == 1
    assert result.prefix[0]["hidden"].shape == (1, 1, 64)


def test_text_is_cut_at_48_tokens_when_longer(parts: DecoderParts, tmp_path: Path) -> None:
    result = record_graph_inputs(parts, [list(range(40, 140))], SLOTS, tmp_path)
    assert [feed["hidden"].shape[1] for feed in result.prefix] == [24, 24]


def test_progress_is_told_for_each_text_when_recorded(
    parts: DecoderParts, texts: list[list[int]], tmp_path: Path
) -> None:
    advanced: list[int] = []
    record_graph_inputs(parts, texts[:3], SLOTS, tmp_path, advance=advanced.append)
    assert advanced == [1, 1, 1]
