"""Entropies against hand computations, and sampling that repeats itself with its seed alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobiedit.runtime import Bundle
from mobiedit.runtime.evaluation.fluency import fluency, n_gram_entropy, top_sampler

PROMPT = "The mother tongue of Victor Hugo is"


@pytest.mark.parametrize(
    ("tokens", "bigrams", "trigrams"),
    [
        ([1, 1, 1, 1, 1], 0.0, 0.0),
        ([1, 2, 3, 4, 5], 2.0, math.log2(3)),
        ([1, 2, 1, 2, 1], 1.0, -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))),
        ([1, 2], 0.0, 0.0),
        ([], 0.0, 0.0),
    ],
)
def test_entropy_weighs_bigrams_and_trigrams(tokens: list[int], bigrams: float, trigrams: float) -> None:
    assert n_gram_entropy(tokens) == pytest.approx((2 / 3 * bigrams + 4 / 3 * trigrams) / 2)


@given(st.lists(st.integers(0, 5), max_size=40))
def test_entropy_lies_between_nothing_and_all_different(tokens: list[int]) -> None:
    assert 0 <= n_gram_entropy(tokens) <= n_gram_entropy(range(len(tokens))) + 1e-9


def test_sampler_draws_the_top_five_by_their_probabilities() -> None:
    logits = np.log(np.array([0.05, 0.4, 0.1, 0.02, 0.2, 0.03, 0.2], np.float32))
    choose = top_sampler(np.random.default_rng(0))
    drawn = np.bincount([choose(logits) for _ in range(5000)], minlength=7) / 5000
    wanted = np.array([0.05, 0.4, 0.1, 0, 0.2, 0, 0.2]) / 0.95
    np.testing.assert_allclose(drawn, wanted, atol=0.03)  # four standard deviations of 5,000 draws
    assert drawn[3] == drawn[5] == 0


def test_fluency_is_that_of_the_sampled_continuation_and_follows_its_seed(fp32_model: Bundle) -> None:
    reader = fp32_model.reader()
    values = [fluency(reader, PROMPT, 30, seed) for seed in ((0, 1), (0, 1), (0, 2))]
    tokens = reader.continuation(PROMPT, 30, top_sampler(np.random.default_rng((0, 1))))
    assert len(tokens) == 30
    assert values[0] == values[1] == n_gram_entropy(tokens)
    assert values[0] != values[2]
