"""What read-outs lack, against autograd on the whole softmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mobiedit.runtime.lack import Floats, Lack
from mobiedit.runtime.top_logits import top_logits

ROWS, WIDTH, VOCABULARY = 3, 6, 20
TARGET = np.array([4, 11])
UNEMBEDDING = np.random.default_rng(0).standard_normal((VOCABULARY, WIDTH)).astype(np.float32)


def hidden_states(seed: int = 1) -> Floats:
    return np.random.default_rng(seed).standard_normal((ROWS * len(TARGET), WIDTH)).astype(np.float32)


def lack_of(hidden: Floats, keep: int, centre: Floats | None = None) -> Lack:
    top = top_logits(lambda states: states @ UNEMBEDDING.T, hidden, keep, TARGET)
    mean = UNEMBEDDING.mean(axis=0) if centre is None else centre
    return Lack.of(top, TARGET, lambda tokens: UNEMBEDDING[tokens], mean)


def gradients(hidden: Floats) -> Floats:
    """Return [R, t, D] gradients of the mean over rows of each target token's log-probability."""
    states = torch.from_numpy(hidden).double().requires_grad_()
    log_probs = torch.log_softmax(states @ torch.from_numpy(UNEMBEDDING).double().T, dim=-1)
    chosen = log_probs[torch.arange(len(hidden)), torch.from_numpy(np.tile(TARGET, ROWS))]
    (chosen.sum() / ROWS).backward()
    return states.grad.numpy().reshape(ROWS, len(TARGET), WIDTH)


def test_errors_are_the_gradient_when_all_tokens_but_one_are_kept() -> None:
    """The one left out stands for itself where it is the centre."""
    hidden = hidden_states()
    logits = hidden @ UNEMBEDDING.T
    logits[:, TARGET] = np.inf
    last = int(logits.max(axis=0).argmin())
    kept = [token for token in range(VOCABULARY) if token != last]
    top = top_logits(lambda states: states @ UNEMBEDDING.T, hidden, 1, np.array(kept))
    found = Lack.of(top, TARGET, lambda tokens: UNEMBEDDING[tokens], UNEMBEDDING[last])
    wanted = gradients(hidden)
    # float32 sums of 20 terms against float64 ones; the rest is a difference of logarithms.
    np.testing.assert_allclose(found.by_row, wanted, atol=1e-5)
    np.testing.assert_allclose(found.errors, wanted.sum(axis=0), atol=1e-5)


def test_centre_stands_for_what_is_not_kept_when_few_tokens_are() -> None:
    hidden, centre = hidden_states(), np.full(WIDTH, 7.0, np.float32)
    top = top_logits(lambda states: states @ UNEMBEDDING.T, hidden, 4, TARGET)
    rest = 1 - top.probabilities().sum(axis=-1).reshape(ROWS, len(TARGET)).mean(axis=0)
    moved = lack_of(hidden, 4, centre).errors - lack_of(hidden, 4, np.zeros(WIDTH, np.float32)).errors
    np.testing.assert_allclose(moved, -rest[:, None] * centre, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_competitors_are_the_most_probable_others_when_the_target_is_among_them(seed: int) -> None:
    hidden = hidden_states(seed)
    probabilities = torch.softmax(torch.from_numpy(hidden @ UNEMBEDDING.T), dim=-1).numpy()
    mean = probabilities.reshape(ROWS, len(TARGET), VOCABULARY).mean(axis=0)
    found = lack_of(hidden, VOCABULARY)
    for position, token in enumerate(TARGET):
        others = [int(each) for each in np.argsort(-mean[position]) if each != token]
        assert found.competitors[position].tolist() == others[:2]
        assert found.probabilities[position] == pytest.approx(mean[position, token], rel=1e-4)
