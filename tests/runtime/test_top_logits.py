"""The truncated softmax against the whole one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mobiedit.runtime.top_logits import Floats, TopLogits, top_logits

VOCABULARY = 30
# float32 sums of 30 terms against float64 ones; the rest is a difference of logarithms, kept above 1e-7 of the mass.
TOLERANCE = 1e-5


def truncate(logits: Floats, keep: int, wanted: tuple[int, ...] = ()) -> TopLogits:
    """Truncate logits [M, V] that stand for the hidden states: the head is the identity."""
    return top_logits(lambda hidden: hidden, logits, keep, np.array(wanted, np.int64))


def logits_of(seed: int, rows: int = 3, size: float = 3.0) -> Floats:
    return size * np.random.default_rng(seed).standard_normal((rows, VOCABULARY)).astype(np.float32)


def softmax(logits: Floats) -> Floats:
    return np.asarray(torch.softmax(torch.from_numpy(logits).double(), dim=-1).numpy())


@settings(deadline=None)
@given(
    rows=st.integers(1, 5),
    keep=st.integers(1, 2 * VOCABULARY),
    wanted=st.lists(st.integers(0, VOCABULARY - 1), max_size=4),
    size=st.floats(0, 30),
    seed=st.integers(0, 1000),
)
def test_probabilities_are_the_whole_softmaxs_when_logits_are_any(
    rows: int, keep: int, wanted: list[int], size: float, seed: int
) -> None:
    logits = logits_of(seed, rows, size)
    top = truncate(logits, keep, tuple(wanted))
    np.testing.assert_allclose(top.probabilities(), softmax(logits)[:, top.ids], atol=TOLERANCE)
    assert top.ids.tolist() == sorted(set(top.ids.tolist()))
    assert set(wanted) <= set(top.ids.tolist())
    best = np.argsort(-logits, axis=-1)[:, : min(keep, VOCABULARY - 1)]
    kept = np.sort(logits[:, top.ids], axis=-1)[:, ::-1][:, : best.shape[1]]
    # As values: equal logits may stand for each other.
    assert np.array_equal(kept, np.take_along_axis(logits, best, axis=-1))


@pytest.mark.parametrize("keep", [1, 5, 20])
def test_rest_is_the_log_sum_of_all_other_logits_when_truncated(keep: int) -> None:
    logits = logits_of(1)
    top = truncate(logits, keep)
    others = np.setdiff1d(np.arange(VOCABULARY), top.ids)
    everything = torch.logsumexp(torch.from_numpy(logits).double(), dim=-1).numpy()
    mass = np.exp(top.rest - everything)
    np.testing.assert_allclose(mass, softmax(logits)[:, others].sum(axis=-1), atol=TOLERANCE)
    assert (mass > 1e-5).all()
    assert top.rest.dtype == np.float32


def test_rest_is_next_to_nothing_when_every_token_is_kept() -> None:
    logits = logits_of(2)
    top = truncate(logits, VOCABULARY, tuple(range(VOCABULARY)))
    assert top.ids.tolist() == list(range(VOCABULARY))
    assert np.isfinite(top.rest).all()
    np.testing.assert_allclose(top.probabilities().sum(axis=-1), 1, atol=TOLERANCE)


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_probabilities_are_finite_when_logits_are_huge(size: float) -> None:
    logits = np.zeros((1, VOCABULARY), np.float32)
    logits[0, 3] = size
    top = truncate(logits, 2, (7,))
    assert top.probabilities()[0, top.index(np.array([3, 7]))].tolist() == [1, 0]


def test_index_finds_the_wanted_tokens_when_they_are_improbable() -> None:
    logits = logits_of(3)
    wanted = np.array([int(i) for i in np.argsort(logits[0])[:3]])
    top = truncate(logits, 2, tuple(wanted))
    assert np.array_equal(top.ids[top.index(wanted)], wanted)
    assert np.array_equal(top.logits[:, top.index(wanted)], logits[:, wanted])
