"""The four graphs with caches and slots against one uncached run, and against the real model."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import LlamaForCausalLM

from mobiedit.runtime.costs import CostMeter
from mobiedit.runtime.decoder import Decoder, Floats, LayerCache, Slots
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.manifest import Manifest

IDS = np.random.default_rng(0).integers(1, 600, 24)
# Logits and normalised states here are of size 1 to 10; float32 sums in another order differ by about 1e-5.
TOLERANCE = 1e-4


def finals(decoder: Decoder, slots: Slots, ids: NDArray[np.int64], *ends: int) -> Floats:
    """Return the final states [B, T, D] of rows [B, T] that are run in pieces, each ending at one of ``ends``."""
    prefix, suffix = decoder.sink_caches(len(ids))
    pieces = []
    for piece in np.split(ids, ends, axis=1):
        residual, prefix_new = decoder.run_prefix(piece, prefix)
        hidden, suffix_new = decoder.run_suffix(decoder.run_edit(residual, slots).hidden, suffix)
        prefix, suffix = prefix.extended(prefix_new), suffix.extended(suffix_new)
        pieces.append(hidden)
    return np.concatenate(pieces, axis=1)


def logits(decoder: Decoder, slots: Slots, ids: NDArray[np.int64]) -> Floats:
    return decoder.run_head(finals(decoder, slots, ids[None])[0])


def reference(model: LlamaForCausalLM, sink: int, ids: NDArray[np.int64]) -> Floats:
    """Return the real model's logits [T, V] behind the sink token."""
    with torch.no_grad():
        found: Floats = model(torch.tensor([[sink, *ids]])).logits[0, 1:].numpy()
    return found


def keys_of(model: LlamaForCausalLM, layer: int, ids: list[int]) -> Floats:
    """Return the inputs [T, F] of a layer's down projection."""
    caught: list[torch.Tensor] = []
    down = model.model.layers[layer].mlp.down_proj
    handle = down.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0][0]))
    try:
        with torch.no_grad():
            model(torch.tensor([ids]))
    finally:
        handle.remove()
    found: Floats = caught[0].numpy()
    return found


@pytest.fixture(scope="module")
def slots(manifest: Manifest, llama_model: LlamaForCausalLM) -> Slots:
    """Two edits and a free slot; each moves the values by a length like their own, and none at the sink token."""
    rng = np.random.default_rng(1)
    made = Slots.empty(manifest.slots, manifest.shape)
    sink_key, *keys = keys_of(llama_model, manifest.edit_layer, [manifest.sink_token, *IDS])
    for slot in (0, 2):
        direction = rng.standard_normal(manifest.shape.mlp_width).astype(np.float32)
        # The sink's K and V are constants of the bundle, so no edit moves it; in a patched weight it would move.
        direction -= sink_key * (direction @ sink_key) / (sink_key @ sink_key)
        direction /= np.linalg.norm(np.array(keys) @ direction) / np.sqrt(len(keys))
        made = made.with_edit(slot, direction, rng.standard_normal(manifest.shape.width).astype(np.float32))
    return made


def test_logits_equal_transformers_when_no_slot_is_taken(
    decoder: Decoder, manifest: Manifest, llama_model: LlamaForCausalLM
) -> None:
    found = logits(decoder, Slots.empty(manifest.slots, manifest.shape), IDS)
    np.testing.assert_allclose(found, reference(llama_model, manifest.sink_token, IDS), atol=TOLERANCE)


@pytest.mark.parametrize("taken", [(0,), (2,), (0, 2)], ids=["first", "last", "both"])
def test_logits_equal_the_patched_weights_when_slots_are_taken(
    taken: tuple[int, ...], slots: Slots, decoder: Decoder, manifest: Manifest, llama_model: LlamaForCausalLM
) -> None:
    used = Slots.empty(manifest.slots, manifest.shape)
    patched = copy.deepcopy(llama_model)
    weight = patched.model.layers[manifest.edit_layer].mlp.down_proj.weight
    for slot in taken:
        used = used.with_edit(slot, slots.directions[slot], slots.deltas[slot])
        weight += torch.outer(torch.from_numpy(slots.deltas[slot]), torch.from_numpy(slots.directions[slot]))
    wanted = reference(patched, manifest.sink_token, IDS)
    assert np.abs(wanted - reference(llama_model, manifest.sink_token, IDS)).max() > 1
    np.testing.assert_allclose(logits(decoder, used, IDS), wanted, atol=TOLERANCE)


def test_keys_and_values_equal_the_down_projections_when_slots_are_taken(
    slots: Slots, decoder: Decoder, manifest: Manifest, llama_model: LlamaForCausalLM
) -> None:
    residual, _ = decoder.run_prefix(IDS[None], decoder.sink_caches(1)[0])
    output = decoder.run_edit(residual, slots)
    keys = keys_of(llama_model, manifest.edit_layer, [manifest.sink_token, *IDS])[1:]
    weight = llama_model.model.layers[manifest.edit_layer].mlp.down_proj.weight.numpy()
    np.testing.assert_allclose(output.keys[0], keys, atol=TOLERANCE)
    wanted = keys @ (weight + slots.deltas.T @ slots.directions).T
    np.testing.assert_allclose(output.values[0], wanted, atol=TOLERANCE)
    np.testing.assert_allclose(output.hidden, residual + output.values, atol=TOLERANCE)


def test_with_edit_leaves_the_former_slots_alone_when_it_adds_one(manifest: Manifest) -> None:
    empty = Slots.empty(manifest.slots, manifest.shape)
    direction, delta = np.ones(manifest.shape.mlp_width, np.float32), np.ones(manifest.shape.width, np.float32)
    full = empty.with_edit(1, direction, delta)
    assert not empty.directions.any()
    assert not empty.deltas.any()
    assert full.directions.any(axis=1).tolist() == full.deltas.any(axis=1).tolist() == [False, True, False]


@settings(deadline=None, max_examples=25)
@given(ends=st.lists(st.integers(1, len(IDS) - 1), unique=True, max_size=4).map(sorted))
def test_states_equal_one_run_when_the_text_comes_in_pieces(ends: list[int], decoder: Decoder, slots: Slots) -> None:
    whole, pieces = finals(decoder, slots, IDS[None]), finals(decoder, slots, IDS[None], *ends)
    np.testing.assert_allclose(pieces, whole, atol=TOLERANCE)


def test_states_equal_one_run_when_tokens_come_one_by_one(decoder: Decoder, slots: Slots) -> None:
    whole, single = finals(decoder, slots, IDS[None]), finals(decoder, slots, IDS[None], *range(1, len(IDS)))
    np.testing.assert_allclose(single, whole, atol=TOLERANCE)


@pytest.mark.parametrize("lengths", [(24, 1), (5, 24, 13, 13), (3, 2, 1)])
def test_rows_equal_single_runs_when_they_are_padded_on_the_right(
    lengths: tuple[int, ...], decoder: Decoder, slots: Slots
) -> None:
    rows = [np.roll(IDS, i)[:length] for i, length in enumerate(lengths)]
    ids = np.zeros((len(rows), max(lengths)), np.int64)
    for padded, row in zip(ids, rows, strict=True):
        padded[: len(row)] = row
    batch = finals(decoder, slots, ids)
    for states, row in zip(batch, rows, strict=True):
        np.testing.assert_allclose(states[: len(row)], finals(decoder, slots, row[None])[0], atol=TOLERANCE)


@pytest.mark.parametrize("lengths", [(9, 4, 1), (7, 7, 7), (1, 12, 2)])
def test_rows_go_on_as_single_runs_when_their_caches_are_cut_to_different_lengths(
    lengths: tuple[int, ...], decoder: Decoder, slots: Slots
) -> None:
    ids = np.array([np.roll(IDS, i) for i in range(len(lengths))])
    prefix, suffix = decoder.sink_caches(len(ids))
    residual, prefix_new = decoder.run_prefix(ids, prefix)
    _, suffix_new = decoder.run_suffix(decoder.run_edit(residual, slots).hidden, suffix)
    kept = 1 + np.array(lengths)
    prefix, suffix = prefix.extended(prefix_new).cut(kept), suffix.extended(suffix_new).cut(kept)
    assert prefix.past == suffix.past == max(kept)
    rest = np.array([row[length : length + 6] for row, length in zip(ids, lengths, strict=True)])
    residual, _ = decoder.run_prefix(rest, prefix)
    states, _ = decoder.run_suffix(decoder.run_edit(residual, slots).hidden, suffix)
    for found, row, length in zip(states, ids, lengths, strict=True):
        whole = finals(decoder, slots, row[None, : length + 6])[0]
        np.testing.assert_allclose(found, whole[length:], atol=TOLERANCE)


def test_rows_of_a_cache_keep_their_lengths_when_they_are_taken_in_another_order() -> None:
    tensors = tuple(np.arange(24, dtype=np.float32).reshape(3, 2, 4, 1) + i for i in range(2))
    taken = LayerCache(tensors, np.array([1, 4, 2])).take(np.array([2, 0, 2]))
    assert taken.lengths.tolist() == [2, 1, 2]
    for found, tensor in zip(taken.tensors, tensors, strict=True):
        assert np.array_equal(found, tensor[[2, 0, 2]])
        assert found.flags.c_contiguous


def test_caches_hold_the_sink_alone_when_they_are_new(decoder: Decoder, manifest: Manifest) -> None:
    prefix, suffix = decoder.sink_caches(3)
    assert (len(prefix.tensors), len(suffix.tensors)) == (2 * (manifest.edit_layer + 1), 4)
    for cache in (prefix, suffix):
        assert cache.past == 1
        assert cache.lengths.tolist() == [1, 1, 1]


@pytest.mark.parametrize("held", [0, 100])
def test_text_is_refused_when_it_is_longer_than_the_context(held: int, decoder: Decoder, manifest: Manifest) -> None:
    empty = Slots.empty(manifest.slots, manifest.shape)
    room = manifest.shape.context - 1 - held  # the sink token takes one place
    cache, _ = decoder.sink_caches(1)
    if held:
        _, new = decoder.run_prefix(np.resize(IDS, (1, held)), cache)
        cache = cache.extended(new)
    residual, _ = decoder.run_prefix(np.resize(IDS, (1, room)), cache)
    assert decoder.run_edit(residual, empty).hidden.shape == (1, room, manifest.shape.width)
    with pytest.raises(RequestError, match="the bundle's context is 256: shorten it"):
        decoder.run_prefix(np.resize(IDS, (1, room + 1)), cache)


@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (1, 24), (5, 7)])
def test_token_layers_count_padding_and_layers_but_no_cache_when_segments_run(
    batch: int, tokens: int, decoder: Decoder, manifest: Manifest
) -> None:
    meter = CostMeter()
    counted = decoder.metered(meter)
    prefix, suffix = counted.sink_caches(batch)
    ids = np.resize(IDS, (batch, tokens))
    residual, new = counted.run_prefix(ids, prefix)
    assert meter.token_layers == batch * tokens * 2  # layers 0 and 1, where the edit is
    hidden = counted.run_edit(residual, Slots.empty(manifest.slots, manifest.shape)).hidden
    final, _ = counted.run_suffix(hidden, suffix)
    counted.run_head(final[:, -1])
    assert meter.token_layers == batch * tokens * 4
    counted.run_prefix(ids[:, :1], prefix.extended(new))
    assert meter.token_layers == batch * tokens * 4 + batch * 2


def test_meters_are_apart_when_a_decoder_gets_another_one(decoder: Decoder) -> None:
    one, two = CostMeter(), CostMeter()
    decoder.metered(one).metered(two).run_prefix(IDS[None], decoder.sink_caches(1)[0])
    assert (one.token_layers, two.token_layers) == (0, 48)
