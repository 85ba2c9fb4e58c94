"""The check of an edit: what holds, what stayed, and what is reported."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch reader knows
from transformers import LlamaForCausalLM

from mobiedit.runtime.decoder import Decoder, Slots
from mobiedit.runtime.edit_check import CanaryCheck, EditCheck, EditChecker, ParaphraseCheck, Success
from mobiedit.runtime.edit_problem import Floats, prefill
from mobiedit.runtime.generation import Generator
from mobiedit.runtime.manifest import Manifest
from mobiedit.runtime.prompt_rows import EditRequest, build_rows
from mobiedit.runtime.readout_loss import log_softmax
from mobiedit.runtime.tokenizer import Tokenizer

REQUEST = EditRequest("The mother tongue of {} is", "Anna", "English")
# Log-probabilities of float32 logits of size 10 against torch's of the real model.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def empty(manifest: Manifest) -> Slots:
    return Slots.empty(manifest.slots, manifest.shape)


def check_edit(
    decoder: Decoder,
    tokenizer: Tokenizer,
    request: EditRequest,
    target: Sequence[int],
    canaries: Sequence[str],
    before: Slots,
    after: Slots,
) -> EditCheck:
    """Compare the model with and without an edit, as a whole edit does."""
    checker = EditChecker(decoder, tokenizer, request, target, canaries)
    return checker.compare(checker.read(checker.edit_layer(before)), checker.read(checker.edit_layer(after)))


def edit_at(decoder: Decoder, empty: Slots, ids: tuple[int, ...], length: float) -> Slots:
    """Return slots with an edit whose direction is the key of the last of ``ids`` and whose delta has a length."""
    residual, _ = decoder.run_prefix(np.array([ids]), decoder.sink_caches(1)[0])
    key = decoder.run_edit(residual, empty).keys[0, -1]
    delta = np.random.default_rng(0).standard_normal(empty.deltas.shape[1])
    return empty.with_edit(0, key / (key @ key), (length * delta / np.linalg.norm(delta)).astype(np.float32))


def distribution(decoder: Decoder, slots: Slots, tokenizer: Tokenizer, prompt: str) -> Floats:
    """Return the log-probabilities [V] of the token behind ``prompt``."""
    return log_softmax(Generator(decoder, slots).next_logits(tokenizer.encode(prompt).ids))


def with_paraphrases(*paraphrases: str) -> EditRequest:
    return EditRequest(REQUEST.prompt, REQUEST.subject, REQUEST.target, paraphrases)


def test_everything_is_kept_when_no_slot_changes(
    decoder: Decoder, byte_tokenizer: Tokenizer, manifest: Manifest, empty: Slots
) -> None:
    check = check_edit(decoder, byte_tokenizer, REQUEST, (5,), manifest.canaries, empty, empty)
    assert [canary.prompt for canary in check.canaries] == list(manifest.canaries)
    assert all(canary.kept and canary.before == canary.after for canary in check.canaries)
    assert max(abs(canary.kl) for canary in check.canaries) < 1e-6  # the same graphs on the same text
    locality = check.locality()
    assert (locality["kept"], locality["checked"], locality["changed"]) == (8, 8, [])


def test_canary_is_reported_when_an_edit_moves_its_key(
    decoder: Decoder, byte_tokenizer: Tokenizer, manifest: Manifest, empty: Slots
) -> None:
    hit = manifest.canaries[2]
    after = edit_at(decoder, empty, byte_tokenizer.encode(hit).ids, 1000.0)
    check = check_edit(decoder, byte_tokenizer, REQUEST, (5,), manifest.canaries, empty, after)
    canary = check.canaries[2]
    was, now = (distribution(decoder, slots, byte_tokenizer, hit) for slots in (empty, after))
    assert was.argmax() != now.argmax()
    assert canary == CanaryCheck(
        hit,
        byte_tokenizer.decode([int(was.argmax())]),
        byte_tokenizer.decode([int(now.argmax())]),
        canary.kl,
        kept=False,
    )
    divergence = F.kl_div(torch.from_numpy(now), torch.from_numpy(was), reduction="sum", log_target=True)
    assert canary.kl == pytest.approx(float(divergence), rel=1e-4)
    assert f"{hit!r} changed from {canary.before!r} to {canary.after!r}" in check.failures
    locality = check.locality()
    changed = [c.prompt for c in check.canaries if not c.kept]
    assert hit in changed
    assert [entry["prompt"] for entry in locality["changed"]] == changed
    assert (locality["kept"], locality["checked"]) == (8 - len(changed), 8)
    assert locality["max_kl"] == max(c.kl for c in check.canaries) >= canary.kl > 0.1
    json.dumps(locality, allow_nan=False)


def test_kept_prompts_of_the_request_are_checked_once_when_they_are_canaries_too(
    decoder: Decoder, byte_tokenizer: Tokenizer, manifest: Manifest, empty: Slots
) -> None:
    keep = ("Roses are blue", manifest.canaries[0], "Roses are blue")
    request = EditRequest(REQUEST.prompt, REQUEST.subject, REQUEST.target, keep=keep)
    check = check_edit(decoder, byte_tokenizer, request, (5,), manifest.canaries, empty, empty)
    assert [canary.prompt for canary in check.canaries] == [*manifest.canaries, "Roses are blue"]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_paraphrase_holds_when_the_target_beats_the_answer_from_before(
    place: int, decoder: Decoder, byte_tokenizer: Tokenizer, empty: Slots
) -> None:
    prompt = "Anna grew up speaking"
    after = edit_at(decoder, empty, byte_tokenizer.encode(prompt).ids, 1000.0)
    was, now = (distribution(decoder, slots, byte_tokenizer, prompt) for slots in (empty, after))
    order = np.argsort(-now).tolist()
    rank = order.index(int(was.argmax()))  # of the former answer after the edit
    assert rank > 2
    beating, equal, beaten = order[1], order[rank], order[rank + 1]
    target = (beating, equal, beaten)[place]
    check = check_edit(decoder, byte_tokenizer, with_paraphrases("{} grew up speaking"), (target,), (), empty, after)
    (paraphrase,) = check.paraphrases
    top = byte_tokenizer.decode([order[0]])
    assert paraphrase == ParaphraseCheck(
        prompt, byte_tokenizer.decode([int(was.argmax())]), top, paraphrase.target_prob, holds=place < 2
    )
    assert paraphrase.target_prob == pytest.approx(float(np.exp(now[target])), rel=1e-5)
    failure = f"paraphrase {prompt!r} still leads to {top!r}"
    assert (failure in check.failures) == (place == 2)


def test_paraphrases_come_in_order_when_some_do_not_name_the_subject(
    decoder: Decoder, byte_tokenizer: Tokenizer, empty: Slots
) -> None:
    request = with_paraphrases("{} speaks", "She speaks", "Ask {}: ")
    check = check_edit(decoder, byte_tokenizer, request, (5,), (), empty, empty)
    assert [p.prompt for p in check.paraphrases] == ["Anna speaks", "She speaks", "Ask Anna:"]
    assert check.locality() == {"kept": 0, "checked": 0, "max_kl": 0.0, "changed": []}


@pytest.mark.parametrize("edited", [False, True])
def test_success_is_greedy_when_the_target_is_what_the_model_writes(
    edited: bool, decoder: Decoder, byte_tokenizer: Tokenizer, empty: Slots
) -> None:
    ids = byte_tokenizer.encode(REQUEST.text).ids
    after = edit_at(decoder, empty, ids, 1000.0) if edited else empty
    target = list(Generator(decoder, after).tokens(ids, 3))
    check = check_edit(decoder, byte_tokenizer, REQUEST, target, (), empty, after)
    assert check.success.greedy_match
    assert check.failures == ()
    # The last token alone is wrong: the first two are still what the model writes.
    other = check_edit(decoder, byte_tokenizer, REQUEST, [*target[:2], (target[2] + 1) % 600], (), empty, after)
    assert not other.success.greedy_match
    assert other.failures == ("the prompt does not lead to the target",)
    assert other.success.target_prob < check.success.target_prob


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("seed", range(4))
def test_success_agrees_with_generation_when_the_target_is_what_is_written_or_nearly(
    length: int, seed: int, decoder: Decoder, byte_tokenizer: Tokenizer, empty: Slots
) -> None:
    ids = byte_tokenizer.encode(REQUEST.text).ids
    after = edit_at(decoder, empty, ids, 400.0 * (seed + 1))
    written = list(Generator(decoder, after).tokens(ids, length))
    changed = list(written)
    changed[seed % length] = (written[seed % length] + 1 + seed) % 600
    for target in (written, changed):
        generated = list(Generator(decoder, after).tokens(ids, len(target)))
        success = check_edit(decoder, byte_tokenizer, REQUEST, target, (), empty, after).success
        assert success.greedy_match == (generated == target)


@pytest.mark.parametrize("target", [(7,), (40, 41, 42)])
def test_success_equals_cross_entropy_of_the_real_model_when_the_target_is_any(
    target: tuple[int, ...],
    decoder: Decoder,
    byte_tokenizer: Tokenizer,
    empty: Slots,
    llama_model: LlamaForCausalLM,
    manifest: Manifest,
) -> None:
    ids = byte_tokenizer.encode(REQUEST.text).ids
    success = check_edit(decoder, byte_tokenizer, REQUEST, target, (), empty, empty).success
    with torch.no_grad():
        logits = llama_model(torch.tensor([[manifest.sink_token, *ids, *target[:-1]]])).logits[0, len(ids) :]
    nll = float(F.cross_entropy(logits, torch.tensor(target)))
    assert success.nll == pytest.approx(nll, abs=TOLERANCE)
    assert success.target_prob == pytest.approx(np.exp(-nll), rel=TOLERANCE)


@pytest.mark.parametrize("target", ["English", "Émile", "42", "東京"])
def test_success_is_that_of_the_searchs_bare_row_when_the_target_is_any(
    target: str, decoder: Decoder, byte_tokenizer: Tokenizer, empty: Slots
) -> None:
    """What the search has made likely must be what the check asks for."""
    request = EditRequest(REQUEST.prompt, REQUEST.subject, target)
    rows = build_rows(request, ("{}",), byte_tokenizer, 32)
    states = prefill(decoder, rows, empty).final[0, list(rows.rewriting[0].readouts)]
    searched = log_softmax(decoder.run_head(states))[np.arange(len(rows.target)), list(rows.target)]
    success = check_edit(decoder, byte_tokenizer, request, rows.target, (), empty, empty).success
    assert success.nll == pytest.approx(-float(searched.mean()), abs=TOLERANCE)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize("greedy", [True, False])
def test_failures_name_each_part_when_it_failed(greedy: bool, holds: bool, kept: bool) -> None:
    check = EditCheck(
        Success(greedy, 0.5, 0.7),
        (ParaphraseCheck("p", "old", "new", 0.5, holds),),
        (CanaryCheck("c", "left", "right", 0.25, kept), CanaryCheck("d", "same", "same", 0.125, kept=True)),
        Success(False, 0.1, 2.3),
    )
    wanted = [] if greedy else ["the prompt does not lead to the target"]
    wanted += [] if holds else ["paraphrase 'p' still leads to 'new'"]
    wanted += [] if kept else ["'c' changed from 'left' to 'right'"]
    assert list(check.failures) == wanted
    assert check.locality()["max_kl"] == 0.25
    assert check.locality()["kept"] == 1 + kept
