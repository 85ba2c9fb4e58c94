"""The edit layer by evidence: updates against really changed weights, the search, and the rule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from mobiedit.calibration.edited_rows import EditedRows, read_rows
from mobiedit.calibration.facts import probe_requests
from mobiedit.calibration.key_statistics import collect_key_statistics
from mobiedit.calibration.layer_choice import best_layer, candidate_layers, choose_layer
from mobiedit.calibration.layer_trial import LayerEvidence, LayerTrial, SearchConfig
from mobiedit.calibration.probe_rows import ProbeFact, probe_fact
from mobiedit.calibration.text import default_text
from mobiedit.runtime.tokenizer import Tokenizer

SINK, LAYER = 0, 1
PREFIXES = ("{}", "The weather was fine. {}", "Because of this, {}")
TEXTS = ([5, 90, 200, 31, 77, 12], [300, 41, 8], [17, 220, 119, 64])
Inverses = dict[int, np.ndarray]


@pytest.fixture(scope="module")
def facts(llama: Path) -> list[ProbeFact]:
    tokenizer = Tokenizer(llama / "tokenizer.json")
    return [probe_fact(request, PREFIXES, tokenizer) for request in probe_requests(4, seed=0)]


@pytest.fixture(scope="module")
def inverses(model: nn.Module, tokenizer: PreTrainedTokenizerFast) -> Inverses:
    statistics = collect_key_statistics(model, tokenizer, [1, 2], SINK, default_text()[:60], 5.0)
    return {layer: each.inverse_covariance for layer, each in statistics.items()}


def trial_of(model: nn.Module, facts: list[ProbeFact], inverses: Inverses, layer: int = LAYER) -> LayerTrial:
    read = read_rows(model, SINK, [row.ids for fact in facts for row in fact.rows], [layer])
    return LayerTrial(read, facts, layer, inverses[layer])


@contextmanager
def changed_weight(model: nn.Module, layer: int, change: Tensor) -> Iterator[None]:
    weight = model.model.layers[layer].mlp.down_proj.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight += change
    yield
    with torch.no_grad():
        weight.copy_(before)


def with_changed_weight(model: nn.Module, ids: list[int], layer: int, delta: Tensor, direction: Tensor) -> Tensor:
    """Last hidden states [T, D] of a text under ``W + outer(delta, direction)``, the sink's K and V being constants."""
    with torch.no_grad():
        cache = model.model(torch.tensor([[SINK]]), use_cache=True).past_key_values
        with changed_weight(model, layer, torch.outer(delta, direction)):
            output = model.model(torch.tensor([ids]), past_key_values=cache, use_cache=True)
    return output.last_hidden_state[0]


# Updates


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_update_is_that_of_changed_weights_when_it_acts_on_every_token(family: str, make_checkpoint: object) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_checkpoint(family), dtype=torch.float32).eval()  # type: ignore[operator]
    generator = torch.Generator().manual_seed(1)
    deltas = torch.randn(3, 64, generator=generator)
    directions = torch.randn(3, 128, generator=generator) / 5
    read = read_rows(model, SINK, TEXTS, [LAYER])
    edited = EditedRows.open(read, LAYER, torch.arange(3), torch.ones(3, dtype=torch.long), directions)
    with torch.no_grad():
        found = edited.final(deltas)
    for row, text in enumerate(TEXTS):
        expected = with_changed_weight(model, text, LAYER, deltas[row], directions[row])
        # Batched and single products round differently; hidden states are of size 1.
        torch.testing.assert_close(found[row, : len(text)], expected, atol=1e-4, rtol=1e-4)
        assert (expected - read.final[row, 1 : 1 + len(text)]).abs().max() > 0.1  # the update is felt


def test_tokens_behind_the_start_are_those_of_changed_weights_when_the_front_is_kept(model: nn.Module) -> None:
    read = read_rows(model, SINK, TEXTS, [LAYER])
    rows, starts = torch.tensor([2, 0]), torch.tensor([1, 4])
    directions = torch.randn(2, 128, generator=torch.Generator().manual_seed(2)) / 5
    # A key in front of the start that the direction does not see: the update does nothing there.
    front = read.keys[LAYER][0, 1:4]
    directions[1] -= torch.linalg.pinv(front) @ (front @ directions[1])
    deltas = torch.randn(2, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found = EditedRows.open(read, LAYER, rows, starts, directions).final(deltas)
    for row, (text, start) in enumerate(((TEXTS[2], 1), (TEXTS[0], 4))):
        expected = with_changed_weight(model, text, LAYER, deltas[row], directions[row])[start - 1 :]
        torch.testing.assert_close(found[row, : len(expected)], expected, atol=1e-4, rtol=1e-4)


def test_model_is_as_before_when_rows_are_read(model: nn.Module) -> None:
    ids = torch.tensor([[SINK, *TEXTS[0]]])
    with torch.no_grad():
        before = model(ids).logits
        read_rows(model, SINK, TEXTS, [0, 2])
        assert torch.equal(model(ids).logits, before)
    assert not any(model.model.layers[i].mlp.down_proj._forward_hooks for i in range(4))


# The trial of a layer


def mean_nll(model: nn.Module, fact: ProbeFact, delta: Tensor, direction: Tensor) -> float:
    """NLL of the target over the rewriting rows, with the weight really changed."""
    losses = []
    for row in fact.rewriting:
        hidden = with_changed_weight(model, list(row.ids), LAYER, delta, direction)
        logits = model.lm_head(hidden[list(row.readouts)])
        losses.append(float(F.cross_entropy(logits, torch.tensor(row.target)).detach()))
    return float(np.mean(losses))


def test_direction_reaches_the_key_when_it_is_taken_as_the_device_does(
    model: nn.Module, facts: list[ProbeFact], inverses: Inverses
) -> None:
    read = read_rows(model, SINK, [row.ids for fact in facts for row in fact.rows], [LAYER])
    trial = LayerTrial(read, facts, LAYER, inverses[LAYER])
    for i in range(len(facts)):
        keys = [read.keys[LAYER][5 * i + j, 1 + facts[i].rewriting[j].subject] for j in range(3)]
        star = (keys[0] + (keys[1] + keys[2]) / 2) / 2
        assert float(trial.directions[i] @ star) == pytest.approx(1, abs=1e-4)


def test_loss_of_every_fact_falls_when_deltas_are_found(
    model: nn.Module, facts: list[ProbeFact], inverses: Inverses
) -> None:
    trial = trial_of(model, facts, inverses)
    deltas = trial.find_deltas(SearchConfig())
    assert (deltas.norm(dim=-1) <= 4 * trial.value_norms * (1 + 1e-5)).all()
    assert all(parameter.grad is None for parameter in model.parameters())
    for fact, delta, direction in zip(facts, deltas, trial.directions, strict=True):
        assert mean_nll(model, fact, delta, direction) < mean_nll(model, fact, 0 * delta, direction) - 0.5


def test_facts_are_independent_when_searched_together(
    model: nn.Module, facts: list[ProbeFact], inverses: Inverses
) -> None:
    config = SearchConfig(steps=3)
    together = trial_of(model, facts, inverses).find_deltas(config)
    for fact, delta in zip(facts, together, strict=True):
        alone = trial_of(model, [fact], inverses).find_deltas(config)
        # Adam divides by the gradient's own size: rounding is felt where a gradient is near zero.
        assert float(F.cosine_similarity(alone[0], delta, dim=0)) > 0.999


def test_evidence_is_that_of_changed_weights(model: nn.Module, facts: list[ProbeFact], inverses: Inverses) -> None:
    trial = trial_of(model, facts, inverses)
    deltas = trial.find_deltas(SearchConfig(steps=10))
    found = trial.evidence(deltas)
    success, paraphrase, locality = [], [], []
    for fact, delta, direction in zip(facts, deltas, trial.directions, strict=True):
        answers = []
        for row in (fact.rewriting[0], fact.paraphrase, fact.neighbour):
            hidden = with_changed_weight(model, list(row.ids), LAYER, delta, direction)
            answers.append(model.lm_head(hidden[list(row.readouts)]).argmax(dim=-1).tolist())
        own = model(torch.tensor([[SINK, *fact.neighbour.ids]])).logits[0, -1].argmax()
        success.append(tuple(answers[0]) == fact.rewriting[0].target)
        paraphrase.append(np.mean([a == b for a, b in zip(answers[1], fact.paraphrase.target, strict=True)]))
        locality.append(answers[2] == [int(own)])
    assert found.success == pytest.approx(np.mean(success))
    assert found.paraphrase == pytest.approx(np.mean(paraphrase))
    assert found.locality == pytest.approx(np.mean(locality))
    assert (found.layer, found.suffix_layers) == (LAYER, 2)


def test_evidence_is_of_the_model_itself_when_deltas_are_zero(
    model: nn.Module, facts: list[ProbeFact], inverses: Inverses
) -> None:
    evidence = trial_of(model, facts, inverses).evidence(torch.zeros(len(facts), 64))
    assert (evidence.success, evidence.locality) == (0, 1)


# The choice


def test_choice_states_evidence_of_every_candidate_and_is_the_same_again(
    model: nn.Module, facts: list[ProbeFact], inverses: Inverses, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Timed, so not the same under load.
    monkeypatch.setattr("mobiedit.calibration.layer_choice.bfloat16_pays", lambda: False)
    steps: list[int] = []
    config = SearchConfig(steps=4)
    one = choose_layer(model, SINK, inverses, facts, config, steps.append)
    other = choose_layer(model, SINK, inverses, facts, config)
    assert one.candidates == other.candidates
    assert one.layer == best_layer(one.candidates)
    stated = one.to_dict()
    assert stated.keys() == {"chosen", "candidates", "facts", "seconds"}
    assert [each["layer"] for each in stated["candidates"]] == [1, 2]
    fields = {"layer", "success", "paraphrase", "locality", "suffix_layers", "score"}
    assert all(each.keys() == fields for each in stated["candidates"])
    assert (stated["facts"], steps) == (4, [4, 4])


def evidence(layer: int, score: float) -> LayerEvidence:
    return LayerEvidence(layer, score, score, score, 30 - 1 - layer)


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ({10: 0.9, 14: 0.5, 16: 0.5, 18: 0.5}, 10),
        ({10: 0.9, 14: 0.88, 16: 0.86, 18: 0.5}, 14),
        ({10: 0.9, 14: 0.8, 16: 0.87, 18: 0.86}, 16),  # exactly 0.03 below counts
        ({10: 0.9, 14: 0.9, 16: 0.9, 18: 0.9}, 18),
        ({18: 0.1, 10: 0.9}, 10),
        ({7: 0.0}, 7),
    ],
)
def test_latest_layer_within_tolerance_is_chosen(scores: dict[int, float], chosen: int) -> None:
    assert best_layer([evidence(layer, score) for layer, score in scores.items()]) == chosen


def test_score_is_the_mean_of_three() -> None:
    assert LayerEvidence(3, 1.0, 0.5, 0.75, 4).score == 0.75


@pytest.mark.parametrize(
    ("n_layers", "candidates"), [(30, (10, 13, 15)), (24, (8, 10, 12)), (4, (1, 2)), (3, (1,)), (2, (0,))]
)
def test_candidates_are_distinct_layers_with_one_behind_them(n_layers: int, candidates: tuple[int, ...]) -> None:
    assert candidate_layers(n_layers) == candidates


# The facts


def test_own_facts_are_the_same_for_a_seed_and_others_for_another() -> None:
    assert probe_requests(8, seed=0) == probe_requests(8, seed=0) != probe_requests(8, seed=1)


def test_own_facts_have_another_wording_and_a_neighbour_of_the_same_relation() -> None:
    for request in probe_requests(20, seed=3):
        (paraphrase,), (neighbour,) = request.paraphrases, request.keep
        assert request.subject.lower() in paraphrase.lower()
        assert paraphrase != request.text != neighbour
        before, after = request.prompt.split("{}")
        assert neighbour.startswith(before)
        assert neighbour.endswith(after)


def test_facts_of_a_file_are_its_own_where_they_have_all_when_given(tmp_path: Path) -> None:
    import json

    record = {
        "id": "dentist",
        "subject": "dentist",
        "prompt": "My dentist's name is",
        "target_new": "Dr. Chen",
        "paraphrases": ["The name of my dentist is"],
        "unrelated": [{"prompt": "My plumber's name is"}],
    }
    bare = {**record, "id": "bare", "paraphrases": [], "unrelated": []}
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([record, bare]))
    requests = probe_requests(3, 0, path)
    assert len(requests) == 3
    assert requests[0].text == "My dentist's name is"
    assert (requests[0].paraphrases, requests[0].keep) == (("The name of my dentist is",), ("My plumber's name is",))
    assert all(request.subject != "dentist" for request in requests[1:])
