"""The search's forwards: each policy against the uncached one, and that one against the real model with a hook."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from mobiedit.runtime.bundle_layout import KEY_STATISTICS
from mobiedit.runtime.configuration import PrefixCache
from mobiedit.runtime.costs import CostMeter
from mobiedit.runtime.decoder import Decoder, Slots
from mobiedit.runtime.edit_problem import EditProblem, Floats, prefill
from mobiedit.runtime.key_statistics import KeyStatistics
from mobiedit.runtime.manifest import Manifest
from mobiedit.runtime.prompt_rows import EditRequest, PromptRows, build_rows
from mobiedit.runtime.rank_one import rank_one_direction
from mobiedit.runtime.tokenizer import Tokenizer

# Normalised states are of size 1; float32 sums in another order differ by about 1e-5.
TOLERANCE = 1e-4
REQUESTS = {
    "subject-inside": EditRequest("The mother tongue of {} is", "Anna Miller", "English"),
    "subject-at-the-start": EditRequest("{} was born in the city of", "Anna", "Rome"),
    "subject-at-the-end": EditRequest("The book was written by the man from {}", "Paris", "in French"),
}


@dataclass(frozen=True)
class Case:
    """A request in rows, the edits in force, and how to open the problem."""

    rows: PromptRows
    slots: Slots
    direction: Floats
    value_norm: float
    open: Callable[..., EditProblem]
    """Takes policy, meter, stale_tokens, and the decoder to run ``on``."""

    def deltas(self, n: int) -> Floats:
        """Return random deltas as long as the value at the subject."""
        deltas = np.random.default_rng(5).standard_normal((n, self.slots.deltas.shape[1]))
        return (self.value_norm * deltas / np.linalg.norm(deltas, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module", params=REQUESTS)
def case(
    request: pytest.FixtureRequest, decoder: Decoder, manifest: Manifest, byte_tokenizer: Tokenizer, fp32_bundle: Path
) -> Case:
    rows = build_rows(REQUESTS[request.param], manifest.row_prefixes, byte_tokenizer, 32, echo_tokens=64)
    rng = np.random.default_rng(4)
    slots = Slots.empty(manifest.slots, manifest.shape).with_edit(
        0,
        0.1 * rng.standard_normal(manifest.shape.mlp_width).astype(np.float32),
        rng.standard_normal(manifest.shape.width).astype(np.float32),
    )
    filled = prefill(decoder, rows, slots)
    inverse = KeyStatistics.find(fp32_bundle / KEY_STATISTICS)
    direction = rank_one_direction(filled.subject_key(rows), inverse)

    def open_problem(
        policy: PrefixCache, meter: CostMeter | None = None, stale_tokens: int = 10, on: Decoder = decoder
    ) -> EditProblem:
        meter = meter or CostMeter()
        return EditProblem(on.metered(meter), rows, filled, direction, slots, meter, policy, stale_tokens)

    return Case(rows, slots, direction, float(np.linalg.norm(filled.subject_value(rows))), open_problem)


@pytest.fixture
def fixed(decoder: Decoder) -> Decoder:
    """The decoder, as if its graphs had fixed shapes: all rows run together."""
    return Decoder(replace(decoder.parts, fixed_shapes=True), CostMeter())


def real_states(
    model: LlamaForCausalLM,
    manifest: Manifest,
    case: Case,
    ids: tuple[int, ...],
    first: int,
    direction: Floats,
    delta: Floats,
) -> Floats:
    """Return the real model's final states [T, D] of a row, its down projection changed from token ``first`` on.

    The edits in force act on every token but the sink, whose K and V are constants of the bundle.
    """

    def change(_: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        key, added = inputs[0].numpy(), output.numpy().copy()
        added[:, 1:] += key[:, 1:] @ case.slots.directions.T @ case.slots.deltas
        added[:, 1 + first :] += (key[:, 1 + first :] @ direction)[..., None] * delta
        return torch.from_numpy(added)

    handle = model.model.layers[manifest.edit_layer].mlp.down_proj.register_forward_hook(change)
    try:
        with torch.no_grad():
            states: Floats = model.model(torch.tensor([[manifest.sink_token, *ids]])).last_hidden_state[0, 1:].numpy()
    finally:
        handle.remove()
    return states


@pytest.mark.parametrize("policy", [PrefixCache.EXACT, PrefixCache.OFF])
def test_readouts_equal_the_real_model_when_delta_is_added_from_the_subject_on(
    policy: PrefixCache, case: Case, llama_model: LlamaForCausalLM, manifest: Manifest
) -> None:
    deltas = case.deltas(2)
    readouts, kept = case.open(policy).readouts(deltas)
    for n, delta in enumerate(deltas):
        states = [
            real_states(llama_model, manifest, case, row.ids, row.subject_index, case.direction, delta)
            for row in case.rows.all
        ]
        for r, row in enumerate(case.rows.rewriting):
            np.testing.assert_allclose(readouts[n, r], states[r][list(row.readouts)], atol=TOLERANCE)
        wanted = [*states[-1][list(case.rows.kept.readouts)], *states[0][list(case.rows.behind)]]
        np.testing.assert_allclose(kept[n], wanted, atol=TOLERANCE)


def test_readouts_equal_the_applied_slot_when_no_token_is_before_the_subject(
    decoder: Decoder, manifest: Manifest, byte_tokenizer: Tokenizer
) -> None:
    rows = build_rows(EditRequest("{} is", "The", "b"), ("{}",), byte_tokenizer, 32)
    assert rows.subjects.tolist() == [0, 0]  # a subject of one token, in both rows
    slots = Slots.empty(manifest.slots, manifest.shape)
    filled = prefill(decoder, rows, slots)
    key = filled.subject_key(rows)
    direction = key / (key @ key)
    delta = np.random.default_rng(0).standard_normal(manifest.shape.width).astype(np.float32)
    meter = CostMeter()
    readouts, kept = EditProblem(decoder, rows, filled, direction, slots, meter).readouts(delta[None])
    applied = prefill(decoder, rows, slots.with_edit(1, direction, delta)).final
    np.testing.assert_allclose(readouts[0, 0], applied[0, list(rows.rewriting[0].readouts)], atol=TOLERANCE)
    np.testing.assert_allclose(kept[0], applied[1, list(rows.kept.readouts)], atol=TOLERANCE)


def test_exact_readouts_equal_the_uncached_ones_when_deltas_are_random(case: Case) -> None:
    exact, off = case.open(PrefixCache.EXACT), case.open(PrefixCache.OFF)
    for n in (1, 4, 1):  # the number of deltas changes between looks and steps, and the repeated cache with it
        deltas = case.deltas(n)
        for found, wanted in zip(exact.readouts(deltas), off.readouts(deltas), strict=True):
            np.testing.assert_allclose(found, wanted, atol=TOLERANCE)


def test_readouts_have_a_row_for_each_delta_when_there_are_several(case: Case, manifest: Manifest) -> None:
    problem, deltas = case.open(PrefixCache.EXACT), case.deltas(3)
    readouts, kept = problem.readouts(deltas)
    rows, tokens = len(case.rows.rewriting), len(case.rows.target)
    assert readouts.shape == (3, rows, tokens, manifest.shape.width)
    # The subject's last token, and at least "is" and "a"; the target's last token, and a comma.
    own = len(case.rows.kept.ids) - case.rows.kept.subject_index
    assert own >= 3
    assert kept.shape == (3, own + 2, manifest.shape.width)
    for n in range(3):
        one, one_kept = problem.readouts(deltas[n : n + 1])
        np.testing.assert_allclose(readouts[n], one[0], atol=TOLERANCE)
        np.testing.assert_allclose(kept[n], one_kept[0], atol=TOLERANCE)
    assert np.abs(readouts[0] - readouts[1]).max() > 0.1
    assert np.abs(kept[0] - kept[1]).max(axis=-1).min() > 0.01  # every one of them moves, beyond the tolerance


@pytest.mark.parametrize("policy", PrefixCache)
def test_each_row_is_as_if_alone_when_rows_have_deltas_of_their_own(policy: PrefixCache, case: Case) -> None:
    problem, count = case.open(policy), len(case.rows.all)
    deltas = case.deltas(2 * count).reshape(2, count, -1)
    readouts, kept = problem.readouts(deltas)
    assert problem.meter.forwards == 2
    for row in range(count):
        shared, shared_kept = problem.readouts(deltas[:, row])
        own = len(case.rows.kept.readouts)
        pairs = [(kept[:, :own], shared_kept[:, :own])] if row == count - 1 else [(readouts[:, row], shared[:, row])]
        if row == 0:
            pairs.append((kept[:, own:], shared_kept[:, own:]))  # what is behind the target is the bare row's
        for found, wanted in pairs:
            np.testing.assert_allclose(found, wanted, atol=TOLERANCE)
    assert np.abs(readouts[:, 0] - shared[:, 0]).max() > 0.1


@pytest.mark.parametrize("policy", PrefixCache)
def test_kept_row_is_as_in_a_forward_when_it_runs_alone(policy: PrefixCache, case: Case) -> None:
    problem, deltas = case.open(policy), case.deltas(3)
    found, (_, wanted) = problem.kept_readouts(deltas), problem.readouts(deltas)
    assert found.shape == (3, len(case.rows.kept.readouts), deltas.shape[1])
    np.testing.assert_allclose(found, wanted[:, : found.shape[1]], atol=TOLERANCE)


def test_kept_row_alone_counts_as_the_forwards_that_it_fills(case: Case, fixed: Decoder) -> None:
    meter, padded, deltas = CostMeter(), CostMeter(), case.deltas(16)
    problem = case.open(PrefixCache.EXACT, meter)
    problem.kept_readouts(deltas)
    assert meter.token_layers == 16 * 2 * problem.window.sizes[-1]
    assert meter.forwards == math.ceil(16 * problem.window.sizes[-1] / problem.window.sizes.sum())
    case.open(PrefixCache.EXACT, padded, on=fixed).kept_readouts(deltas)  # where each row is as long as the longest
    assert padded.forwards == math.ceil(16 / len(case.rows.all)) > meter.forwards


@pytest.mark.parametrize("policy", PrefixCache)
def test_readouts_equal_the_initial_ones_when_delta_is_zero(
    policy: PrefixCache, case: Case, manifest: Manifest
) -> None:
    problem = case.open(policy)
    readouts, kept = problem.readouts(np.zeros((1, manifest.shape.width), np.float32))
    np.testing.assert_allclose(readouts, problem.initial_readouts, atol=TOLERANCE)
    np.testing.assert_allclose(kept, problem.initial_kept, atol=TOLERANCE)


def test_initial_readouts_equal_the_real_model_when_edits_are_in_force(
    case: Case, llama_model: LlamaForCausalLM, manifest: Manifest
) -> None:
    problem = case.open(PrefixCache.EXACT)
    zero = np.zeros(manifest.shape.width, np.float32)
    bare, *others = problem.initial_readouts[0]
    kept, behind = np.split(problem.initial_kept[0], [len(case.rows.kept.readouts)])
    initial = (np.concatenate([bare, behind]), *others, kept)
    for row, places, found in zip(case.rows.all, case.rows.places, initial, strict=True):
        states = real_states(llama_model, manifest, case, row.ids, 0, case.direction, zero)
        np.testing.assert_allclose(found, states[list(places)], atol=TOLERANCE)


def test_refresh_moves_the_readouts_when_stale_tokens_hold_the_subject(case: Case) -> None:
    tokens = max(row.readouts[0] for row in case.rows.rewriting)  # all that can be stale: up to the first read-out
    # Where the subject ends the prompt, it is the first read-out itself, which is never stale.
    held = [row.subject_index < row.readouts[0] for row in case.rows.rewriting]
    stale, off = case.open(PrefixCache.STALE, stale_tokens=tokens), case.open(PrefixCache.OFF)
    for delta in case.deltas(2):  # at the second delta the refreshed cache is stale again
        wanted, wanted_kept = off.readouts(delta[None])
        before, _ = stale.readouts(delta[None])
        off_by = np.abs(before - wanted).max(axis=(0, 2, 3))
        assert [bool(distance > 0.01) for distance in off_by] == held
        stale.refresh(delta)
        after, after_kept = stale.readouts(delta[None])
        np.testing.assert_allclose(after, wanted, atol=TOLERANCE)
        np.testing.assert_allclose(after_kept, wanted_kept, atol=TOLERANCE)


@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_stale_readouts_equal_the_uncached_ones_when_no_stale_token_is_a_subject(tokens: int, case: Case) -> None:
    free = [r for r, row in enumerate(case.rows.rewriting) if row.subject_index >= tokens]
    deltas = case.deltas(2)
    found, found_kept = case.open(PrefixCache.STALE, stale_tokens=tokens).readouts(deltas)
    wanted, wanted_kept = case.open(PrefixCache.OFF).readouts(deltas)
    assert free
    np.testing.assert_allclose(found[:, free], wanted[:, free], atol=TOLERANCE)
    # The kept row is read at its subject, so that no token of it from there on is ever stale.
    np.testing.assert_allclose(found_kept, wanted_kept, atol=TOLERANCE)


@pytest.mark.parametrize("policy", [PrefixCache.EXACT, PrefixCache.OFF])
def test_refresh_does_no_work_when_the_policy_keeps_nothing_that_moves(policy: PrefixCache, case: Case) -> None:
    meter, (delta,) = CostMeter(), case.deltas(1)
    problem = case.open(policy, meter)
    before = problem.readouts(delta[None])
    counted = meter.token_layers
    problem.refresh(2 * delta)
    assert meter.token_layers == counted
    for found, wanted in zip(problem.readouts(delta[None]), before, strict=True):
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("n", [1, 5])
def test_forward_costs_the_windows_tokens_when_a_policy_keeps_some(n: int, case: Case, fixed: Decoder) -> None:
    rows = case.rows
    longest = int(rows.lengths.max())
    firsts = np.array([row.readouts[0] for row in rows.all])
    starts = {PrefixCache.EXACT: rows.subjects, PrefixCache.STALE: np.minimum(4, firsts)}
    counted = {}
    for policy in PrefixCache:
        meter = CostMeter()
        case.open(policy, meter, 4, on=fixed).readouts(case.deltas(n))
        assert meter.forwards == n
        # Two layers up to the edit, two behind it: without a cache all four, for every token of the padded batch.
        window = int((rows.lengths - starts[policy]).max()) if policy in starts else longest
        layers = 4 if policy is PrefixCache.OFF else 2
        assert meter.token_layers == n * len(rows.all) * window * layers
        counted[policy] = meter.token_layers
    assert counted[PrefixCache.EXACT] < counted[PrefixCache.OFF]


@pytest.mark.parametrize("policy", [PrefixCache.EXACT, PrefixCache.STALE])
def test_no_row_is_padded_to_the_bare_or_the_kept_ones_length_when_there_are_many_deltas(
    policy: PrefixCache, case: Case
) -> None:
    meter, rows, deltas = CostMeter(), case.rows, case.deltas(16)
    problem = case.open(policy, meter, 0)
    sizes = rows.lengths - problem.window.starts
    bare, others, kept = int(sizes[0]), int(sizes[1:-1].max()), int(sizes[-1])
    assert len({bare, others, kept}) == 3
    found = problem.readouts(deltas)
    tokens = bare + (len(rows.rewriting) - 1) * others + kept
    assert (meter.dispatches, meter.token_layers) == (3, 16 * 2 * tokens)
    for n, delta in enumerate(deltas):
        for alone, together in zip(problem.readouts(delta[None]), found, strict=True):
            np.testing.assert_allclose(alone[0], together[n], atol=TOLERANCE)


def test_rows_run_together_when_graphs_have_fixed_shapes(case: Case, fixed: Decoder) -> None:
    meter, deltas = CostMeter(), case.deltas(16)
    found = case.open(PrefixCache.EXACT, meter, on=fixed).readouts(deltas)
    assert meter.dispatches == 1
    for together, apart in zip(found, case.open(PrefixCache.EXACT).readouts(deltas), strict=True):
        np.testing.assert_allclose(together, apart, atol=TOLERANCE)


def test_forwards_add_up_when_deltas_come_in_several_calls(case: Case) -> None:
    meter = CostMeter()
    problem = case.open(PrefixCache.EXACT, meter)
    for n in (1, 4, 2):
        problem.readouts(case.deltas(n))
    assert meter.forwards == 7


def test_subject_key_weighs_the_bare_prompt_as_much_as_all_others_when_there_are_prefixes(
    case: Case, decoder: Decoder
) -> None:
    filled = prefill(decoder, case.rows, case.slots)
    keys = [filled.edited.keys[r, row.subject_index] for r, row in enumerate(case.rows.rewriting)]
    wanted = (keys[0] + sum(keys[1:]) / 5) / 2
    np.testing.assert_allclose(filled.subject_key(case.rows), wanted, atol=1e-6)  # roundings of a mean of five
    assert np.array_equal(
        filled.subject_value(case.rows), filled.edited.values[0, case.rows.rewriting[0].subject_index]
    )
    # What the update adds at the bare prompt's subject is close to delta only because the direction is scaled to k*.
    assert float(filled.subject_key(case.rows) @ case.direction) == pytest.approx(1, abs=1e-4)


def test_subject_key_is_the_bare_prompts_when_there_is_no_other_row(
    decoder: Decoder, byte_tokenizer: Tokenizer, manifest: Manifest
) -> None:
    rows = build_rows(REQUESTS["subject-inside"], ("{}",), byte_tokenizer, 32)
    filled = prefill(decoder, rows, Slots.empty(manifest.slots, manifest.shape))
    assert np.array_equal(filled.subject_key(rows), filled.edited.keys[0, rows.rewriting[0].subject_index])


def test_readouts_are_the_same_bits_when_deltas_run_a_few_at_a_time(
    case: Case, fixed: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = CostMeter()
    problem, deltas = case.open(PrefixCache.EXACT, meter, on=fixed), case.deltas(5)
    whole, whole_cost = problem.readouts(deltas), meter.cost()
    of_a_delta = sum(tensor.nbytes for tensor in problem.window.cache.tensors)
    monkeypatch.setattr("mobiedit.runtime.edit_problem._CACHE_BYTES", 2 * of_a_delta)
    for left, right in zip(whole, problem.readouts(deltas), strict=True):
        np.testing.assert_array_equal(left, right)
    cost = meter.cost()
    assert cost.dispatches - whole_cost.dispatches == 3  # 2 + 2 + 1 deltas
    assert (cost.forwards, cost.token_layers) == (2 * whole_cost.forwards, 2 * whole_cost.token_layers)
