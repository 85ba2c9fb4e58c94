"""Every metric against a computation by hand from the log-probabilities of whole texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from mobiedit.calibration.text import default_text
from mobiedit.runtime import Bundle, EditConfig, Method
from mobiedit.runtime.configuration import Optimizer
from mobiedit.runtime.evaluation import EvaluationRecord, Question, metrics
from mobiedit.runtime.evaluation.cached_reader import CachedReader
from mobiedit.runtime.prompt_rows import EditRequest
from mobiedit.runtime.reader import Floats

Records = Callable[..., EvaluationRecord]
Models = Callable[[EvaluationRecord], tuple[CachedReader, CachedReader]]
FORMATS = ["counterfact", "zsre", "personal"]


@dataclass(frozen=True)
class ByHand:
    """The same quantities from `Reader.log_probabilities` of prompt and answer as one text."""

    model: CachedReader
    bundle: Bundle

    def places(self, prompt: str, answer: str) -> tuple[Floats, list[int]]:
        """Return the log-probabilities [t, V] at each place of the answer, and its tokens."""
        start = len(self.bundle.tokenizer.encode(prompt).ids)
        ids = self.bundle.tokenizer.encode(f"{prompt} {answer}").ids
        return self.model.reader.log_probabilities(f"{prompt} {answer}")[start - 1 : -1], list(ids[start:])

    def log_prob(self, prompt: str, answer: str) -> float:
        log_probs, ids = self.places(prompt, answer)
        return float(np.mean([row[token] for row, token in zip(log_probs, ids, strict=True)]))

    def best(self, prompt: str, answer: str) -> list[int]:
        return [int(row.argmax()) for row in self.places(prompt, answer)[0]]

    def accuracy(self, prompt: str, answer: str) -> float:
        log_probs, ids = self.places(prompt, answer)
        return float(np.mean([row.argmax() == token for row, token in zip(log_probs, ids, strict=True)]))

    def next_token(self, prompt: str) -> int:
        return int(self.model.reader.log_probabilities(prompt)[-1].argmax())


@pytest.fixture(scope="session")
def known(fp32_model: Bundle) -> tuple[str, str]:
    """A prompt, and two tokens that the model without edits answers, the same ones when they are read as text."""
    reader = fp32_model.reader()
    for line in default_text():
        prompt = " ".join(line.split()[:4])
        tokens = reader.answer(prompt, 2)
        text = reader.decode(tokens)
        if text.startswith(" ") and tuple(reader.read(prompt, text).answer) == tokens:
            return prompt, text.strip()
    raise AssertionError("the tiny model answers no prompt with two whole tokens")


@pytest.fixture(params=["now", "before"])
def moment(request: pytest.FixtureRequest) -> str:
    """Whether the model after the edit is measured, or the one before it."""
    return str(request.param)


def pick(models: tuple[CachedReader, CachedReader], moment: str) -> tuple[CachedReader, CachedReader]:
    now, before = models
    return (now if moment == "now" else before), before


@pytest.mark.parametrize("record_format", FORMATS)
def test_target_metrics_are_those_by_hand(
    record: Records, models: Models, fp32_model: Bundle, record_format: str, moment: str
) -> None:
    fact = record(record_format, target_new="old English one")
    now, _ = pick(models(fact), moment)
    hand = ByHand(now, fp32_model)
    accuracy = hand.accuracy(fact.prompt, fact.target)
    assert metrics.token_accuracy(fact, now) == pytest.approx(accuracy)
    assert metrics.exact_match(fact, now) is (accuracy == 1)
    assert metrics.exact_match_free(fact, now) is (accuracy == 1)
    assert metrics.target_probability(fact, now) == pytest.approx(
        np.exp(hand.log_prob(fact.prompt, fact.target)), rel=1e-3
    )


def test_exact_match_holds_when_the_target_is_the_greedy_answer(
    record: Records, fp32_model: Bundle, known: tuple[str, str]
) -> None:
    model = CachedReader(fp32_model.reader())
    prompt, answer = known
    fact = record("counterfact", prompt=prompt, subject=prompt.split()[0], target_new=answer)
    assert fp32_model.ask(prompt, 2) == f" {answer}"
    assert metrics.exact_match(fact, model)
    assert metrics.exact_match_free(fact, model)
    assert metrics.token_accuracy(fact, model) == 1
    # The first two tokens alone do not make it exact.
    longer = replace(fact, target=f"{answer} xyzzy")
    assert not metrics.exact_match(longer, model)
    assert not metrics.exact_match_free(longer, model)
    assert 0 < metrics.token_accuracy(longer, model) < 1


@pytest.mark.parametrize("old", [["French"], ["French", "Danish"], ["English French"]])
def test_efficacy_compares_the_target_with_the_most_probable_old_answer(
    record: Records, models: Models, fp32_model: Bundle, old: list[str], moment: str
) -> None:
    fact = record("zsre", ground_truth=old)
    now, before = pick(models(fact), moment)
    hand = ByHand(now, fp32_model)
    best = max(hand.log_prob(fact.prompt, answer) for answer in old)
    assert metrics.efficacy(fact, now, before) is (hand.log_prob(fact.prompt, fact.target) > best)


def test_efficacy_takes_the_best_of_the_old_answers(record: Records, fp32_model: Bundle) -> None:
    model = CachedReader(fp32_model.reader())
    prompt = record("zsre").prompt
    words = sorted(["Rome", "old", "French"], key=lambda word: -model.read(prompt, word).mean_log_prob)
    fact = record("zsre", target_new=words[1], ground_truth=[words[0], words[2]])
    assert not metrics.efficacy(fact, model, model)
    assert metrics.efficacy(record("zsre", target_new=words[1], ground_truth=words[2]), model, model)


def test_efficacy_compares_with_the_own_answer_of_before_when_there_is_no_old_one(
    record: Records, models: Models, moment: str
) -> None:
    fact = record("personal")
    now, before = pick(models(fact), moment)
    own = before.reader.continuation(fact.prompt, len(now.read(fact.prompt, fact.target).answer))
    wanted = now.read(fact.prompt, fact.target).mean_log_prob > now.read(fact.prompt, own).mean_log_prob
    assert metrics.efficacy(fact, now, before) is wanted
    if moment == "before":
        assert not wanted


def test_own_answer_is_that_of_before_the_edit(record: Records, fp32_model: Bundle) -> None:
    fact = record("personal")
    _, after = fp32_model.trial(replace(fact, target="old").request, EditConfig(Optimizer.ZO, Method.ROME))
    now, before = CachedReader(after), CachedReader(fp32_model.reader())
    log_probs = now.reader.log_probabilities(fact.prompt)[-1]
    own, best = log_probs[before.continuation(fact.prompt, 1)[0]], log_probs.max()
    # A target that the edited model takes above its answer of before, and below its answer of now.
    words = {word for line in default_text() for word in line.split()}
    readings = {word: now.read(fact.prompt, word) for word in sorted(words)[:400]}
    between = [w for w, r in readings.items() if len(r.answer) == 1 and own + 0.1 < r.mean_log_prob < best - 0.1]
    assert between
    assert all(metrics.efficacy(replace(fact, target=word), now, before) for word in between)


def test_efficacy_holds_when_the_own_answer_was_the_target_and_still_is(
    record: Records, fp32_model: Bundle, known: tuple[str, str]
) -> None:
    before = CachedReader(fp32_model.reader())
    prompt, answer = known
    subject = prompt.split()[0]
    fact = record("zsre", prompt=prompt, subject=subject, target_new=answer, ground_truth=answer)
    assert metrics.efficacy(fact, before, before)
    _, other = fp32_model.trial(EditRequest.from_text(prompt, subject, "xyzzy"), EditConfig(Optimizer.ZO, Method.ROME))
    assert not other.read(prompt, answer).exact
    assert not metrics.efficacy(fact, CachedReader(other), before)


@pytest.mark.parametrize("record_format", FORMATS)
def test_paraphrase_is_that_by_hand(
    record: Records, models: Models, fp32_model: Bundle, record_format: str, moment: str
) -> None:
    prompts = ["Danielle speaks the language of", "My word for it is", "The best of all is"]
    fact = record(record_format, paraphrases=prompts, rephrase_prompt=prompts)
    now, _ = pick(models(fact), moment)
    hand = ByHand(now, fp32_model)
    if record_format == "counterfact":
        wanted = [hand.log_prob(p, fact.target) > hand.log_prob(p, "French") for p in prompts]
    else:
        wanted = [hand.accuracy(p, fact.target) for p in prompts]
    assert metrics.paraphrase(fact, now) == pytest.approx(np.mean(wanted))


def test_counterfact_paraphrase_and_neighbourhood_go_both_ways(record: Records, fp32_model: Bundle) -> None:
    model = CachedReader(fp32_model.reader())
    prompt = "The mother tongue of Victor Hugo is"
    first, second = sorted(["English", "French"], key=lambda word: -model.read(prompt, word).mean_log_prob)
    for target, old, likelier in ((first, second, 1.0), (second, first, 0.0)):
        changes = {"target_new": target, "ground_truth": old, "locality_ground_truth": old}
        fact = record("counterfact", rephrase_prompt=prompt, locality_prompt=prompt, **changes)
        assert metrics.paraphrase(fact, model) == likelier
        assert metrics.neighbourhood(fact, model, model) == 1 - likelier


def test_counterfact_neighbourhood_is_that_by_hand(
    record: Records, models: Models, fp32_model: Bundle, moment: str
) -> None:
    fact = record("counterfact", locality_ground_truth="Danish")
    now, before = pick(models(fact), moment)
    hand = ByHand(now, fp32_model)
    prompt = fact.neighbours[0].prompt
    wanted = hand.log_prob(prompt, "Danish") > hand.log_prob(prompt, fact.target)
    assert metrics.neighbourhood(fact, now, before) == float(wanted)


def test_zsre_neighbourhood_is_the_share_of_places_that_stay(
    record: Records, models: Models, fp32_model: Bundle
) -> None:
    prompts = ["Anna works as", "Anna lives in", "Which city was the birthplace of"]
    answer = "a teacher in the city of Rome"
    fact = record("zsre", locality={"a": [{"prompt": p, "ground_truth": [answer, "other"]} for p in prompts]})
    now, before = models(fact)
    new, old = ByHand(now, fp32_model), ByHand(before, fp32_model)
    stayed = [np.array(new.best(p, answer)) == np.array(old.best(p, answer)) for p in prompts]
    wanted = np.mean([places.mean() for places in stayed])
    assert 0 < wanted < 1  # else the test would not tell a mean from all or any
    assert metrics.neighbourhood(fact, now, before) == pytest.approx(wanted)
    assert metrics.argmax_unchanged(fact, now, before) == pytest.approx(np.mean([places[0] for places in stayed]))


def test_personal_neighbourhood_is_the_share_of_prompts_whose_next_five_tokens_stay(
    record: Records, models: Models, fp32_model: Bundle
) -> None:
    prompts = ["My plumber's name is", "My dentist says that", "The capital of France is", "My dentist's"]
    fact = record("personal", unrelated=[{"prompt": p} for p in prompts])
    now, before = models(fact)
    five = {p: before.reader.continuation(p, 5) for p in prompts}
    stayed = {p: now.read(p, five[p]).best == np.array(five[p]) for p in prompts}
    wanted = np.mean([places.all() for places in stayed.values()])
    assert wanted < np.mean([places.mean() for places in stayed.values()])  # else all would not be told from a mean
    assert metrics.neighbourhood(fact, now, before) == pytest.approx(wanted)
    assert metrics.argmax_unchanged(fact, now, before) == pytest.approx(
        np.mean([places[0] for places in stayed.values()])
    )


@pytest.mark.parametrize("record_format", ["zsre", "personal"])
def test_what_stays_is_all_before_the_edit(record: Records, fp32_model: Bundle, record_format: str) -> None:
    model = CachedReader(fp32_model.reader())
    assert metrics.neighbourhood(record(record_format), model, model) == 1
    assert metrics.argmax_unchanged(record(record_format), model, model) == 1


def test_counterfact_argmax_is_compared_with_that_of_before(
    record: Records, models: Models, fp32_model: Bundle
) -> None:
    # The prompt itself is the one neighbour that is sure to change.
    fact = record("counterfact", subject="Anna", prompt="Here is Anna", locality_prompt="Here is Anna")
    now, before = models(fact)
    changed = ByHand(now, fp32_model).next_token(fact.prompt) != ByHand(before, fp32_model).next_token(fact.prompt)
    assert changed
    assert metrics.argmax_unchanged(fact, now, before) == 0
    assert metrics.argmax_unchanged(fact, before, before) == 1


@pytest.mark.parametrize("record_format", ["zsre", "personal"])
def test_portability_is_the_best_answer_over_questions_over_kinds(
    record: Records, models: Models, fp32_model: Bundle, record_format: str, moment: str
) -> None:
    fact = record(record_format)
    now, _ = pick(models(fact), moment)
    hand = ByHand(now, fp32_model)

    def best(question: Question) -> float:
        return max(hand.accuracy(question.prompt, answer) for answer in question.answers)

    kinds = [np.mean([best(question) for question in questions]) for questions in fact.portability.values()]
    assert metrics.portability(fact, now) == pytest.approx(np.mean(kinds))


def test_portability_weighs_kinds_alike_and_takes_the_best_answer(
    record: Records, fp32_model: Bundle, known: tuple[str, str]
) -> None:
    model = CachedReader(fp32_model.reader())
    prompt, answer = known
    right = {"prompt": prompt, "ground_truth": ["xyzzy", answer, "xyzzy too"]}
    wrong = [{"prompt": p, "ground_truth": "xyzzy"} for p in ("The capital of France is", "My dentist's name is", "A")]
    assert all(model.read(question["prompt"], "xyzzy").token_accuracy == 0 for question in wrong)
    assert metrics.portability(record("zsre", portability={"a": [right], "b": wrong}), model) == 0.5
    assert metrics.portability(record("zsre", portability={"a": [right, *wrong]}), model) == 0.25


def test_inferences_unchanged_is_the_share_of_places_that_stay(
    record: Records, models: Models, fp32_model: Bundle
) -> None:
    prompts, answers = (
        ["Anna works as", "Anna lives in", "Which city was the birthplace of"],
        ["a teacher in Rome", "o"],
    )
    questions = [{"prompt": prompt, "ground_truth": answers} for prompt in prompts]
    fact = record("zsre", portability={"a": questions[:1], "b": questions[1:]})
    now, before = models(fact)
    new, old = ByHand(now, fp32_model), ByHand(before, fp32_model)
    stayed = [np.array(new.best(p, answers[0])) == np.array(old.best(p, answers[0])) for p in prompts]
    wanted = np.mean([places.mean() for places in stayed])
    assert 0 < wanted < 1  # else the test would not tell a share from all or none
    assert metrics.inferences_unchanged(fact, now, before) == pytest.approx(wanted)
    assert metrics.inferences_unchanged(fact, before, before) == 1


def test_metrics_are_none_when_the_record_has_nothing_to_tell_them_by(record: Records, fp32_model: Bundle) -> None:
    model = CachedReader(fp32_model.reader())
    bare = record("zsre", rephrase_prompt=None, locality=None, portability=None)
    assert metrics.paraphrase(bare, model) is None
    assert metrics.neighbourhood(bare, model, model) is None
    assert metrics.argmax_unchanged(bare, model, model) is None
    assert metrics.portability(bare, model) is None
    assert metrics.inferences_unchanged(bare, model, model) is None
    assert metrics.portability(record("counterfact"), model) is None
