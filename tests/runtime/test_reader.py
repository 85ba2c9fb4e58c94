"""A reader against the uncached log-probabilities, and the ends of what it writes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mobiedit.runtime import Bundle
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.reader import Floats, Reader

PROMPT, ANSWER = "The mother tongue of Victor Hugo is", "a cold English one"


def test_reading_is_that_of_the_text_as_a_whole(bundle: Bundle) -> None:
    start = len(bundle.tokenizer.encode(PROMPT).ids)
    ids = np.array(bundle.tokenizer.encode(f"{PROMPT} {ANSWER}").ids)
    log_probs = bundle.log_probabilities(f"{PROMPT} {ANSWER}")[start - 1 : -1]
    reading = bundle.reader().read(f"{PROMPT} ", f" {ANSWER} ")
    assert reading.answer.tolist() == ids[start:].tolist()
    # The last token is not run where its own successor is not asked for: another shape, another order of sums.
    np.testing.assert_allclose(reading.log_probs, log_probs[range(len(ids) - start), ids[start:]], atol=1e-4)
    assert reading.best.tolist() == log_probs.argmax(axis=-1).tolist()
    assert reading.mean_log_prob == pytest.approx(float(reading.log_probs.mean()))
    assert reading.token_accuracy == pytest.approx((log_probs.argmax(axis=-1) == ids[start:]).mean())
    top = [token for token, _ in reading.top]
    assert top == np.argsort(-log_probs[0])[:5].tolist()
    assert [p for _, p in reading.top] == pytest.approx([math.exp(log_probs[0, token]) for token in top], abs=1e-4)
    assert bundle.score(PROMPT, ANSWER) == (reading.mean_log_prob, reading.exact)


def test_reading_of_tokens_is_exact_when_they_are_the_greedy_ones(bundle: Bundle) -> None:
    reader = bundle.reader()
    greedy = reader.continuation(PROMPT, 6)
    assert len(greedy) == 6
    reading = reader.read(PROMPT, greedy)
    assert reading.exact
    assert reading.token_accuracy == 1
    wrong = reader.read(PROMPT, (*greedy[:-1], greedy[-1] ^ 1))
    assert not wrong.exact
    assert wrong.token_accuracy == pytest.approx(5 / 6)


@pytest.mark.parametrize(("prompt", "answer"), [("", "one"), ("one", " "), ("one", ())])
def test_reading_is_refused_when_a_side_is_empty(bundle: Bundle, prompt: str, answer: str | tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match="give at least one word of each"):
        bundle.reader().read(prompt, answer)


def test_continuation_never_writes_a_stop_and_answer_ends_there(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = bundle.reader()
    free = reader.continuation(PROMPT, 6)
    assert reader.answer(PROMPT, 6) == free
    stop = free[2]
    monkeypatch.setattr(Reader, "stops", (stop,))
    assert reader.answer(PROMPT, 6) == free[: free.index(stop)]
    assert len(reader.continuation(PROMPT, 6)) == 6
    assert stop not in reader.continuation(PROMPT, 6)


def test_continuation_follows_its_chooser(bundle: Bundle) -> None:
    def least_probable(logits: Floats) -> int:
        return int(np.where(np.isinf(logits), np.inf, logits).argmin())

    (token,) = bundle.reader().continuation(PROMPT, 1, least_probable)
    assert token == bundle.log_probabilities(PROMPT)[-1, 1:].argmin() + 1  # token 0 is the stop


def test_continuation_ends_where_the_context_does(bundle: Bundle) -> None:
    prompt = "word " * 60
    room = bundle.manifest.shape.context - len(bundle.tokenizer.encode(prompt.rstrip()).ids)
    assert 0 < room < 200
    assert len(bundle.reader().continuation(prompt, 200)) == room
    assert len(bundle.reader().answer(prompt, 200)) <= room
