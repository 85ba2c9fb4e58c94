"""Updates cut to a rank, against dense algebra in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mobiedit.runtime.closed_form import Batch, Method, coefficients, scaled_gram
from mobiedit.runtime.compaction import Compacted, CompactionConfig, compact
from mobiedit.runtime.errors import RequestError

Doubles = NDArray[np.float64]
TEXT_WEIGHT = 0.1
TOLERANCE = 1e-6  # float64 of well-conditioned systems


class Case:
    """N edits [N, F], [N, D] whose deltas span ``rank`` dimensions, cut to ``slots``."""

    def __init__(self, seed: int, count: int, rank: int, slots: int, width: int = 24, values: int = 9) -> None:
        rng = np.random.default_rng(seed)
        sample = rng.standard_normal((2 * width, width))
        self.c = sample.T @ sample / (2 * width) + 0.1 * np.eye(width)
        self.keys = rng.standard_normal((count, width)) * rng.uniform(0.5, 2.0, (count, 1))
        solved = np.linalg.solve(self.c, self.keys.T).T
        self.leverages = np.einsum("nf,nf->n", self.keys, solved)
        self.lone = solved / self.leverages[:, None]
        self.deltas = rng.standard_normal((count, rank)) @ rng.standard_normal((rank, values))
        self.gram = scaled_gram(self.keys, self.lone, self.leverages)
        batches = [Batch(n, n + 1, Method.EMMET) for n in range(count)]
        self.solved = coefficients(self.gram, self.leverages, batches, 0.01)
        self.whole = self.deltas.T @ self.solved @ self.lone
        self.cut: Compacted = compact(self.deltas, self.solved, self.gram, self.leverages, slots, TEXT_WEIGHT)

    @property
    def update(self) -> Doubles:
        """[D, F] of the cut."""
        return self.cut.deltas.T @ (self.cut.mix @ self.lone)

    def loss(self, change: Doubles) -> float:
        """What a cut is to lose little of: effects at the own keys, and on text."""
        at_text = TEXT_WEIGHT * self.leverages.mean() * np.trace(change @ self.c @ change.T)
        return float(np.square(change @ self.keys.T).sum() + at_text)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 12), rank=st.integers(1, 4))
def test_update_stays_when_the_deltas_span_no_more_than_the_slots(seed: int, count: int, rank: int) -> None:
    case = Case(seed, count, rank, slots=4)
    np.testing.assert_allclose(case.update, case.whole, atol=TOLERANCE * np.abs(case.whole).max())
    assert case.cut.error < TOLERANCE
    assert len(case.cut.deltas) == min(4, count, 9)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(3, 12))
def test_cut_loses_least_when_compared_with_the_dense_solution(seed: int, count: int) -> None:
    """Eckart and Young: of X weighted by M M^T, with M M^T = K^T K + w C, the best cut is the SVD's."""
    case = Case(seed, count, rank=9, slots=2)
    metric = case.keys.T @ case.keys + TEXT_WEIGHT * case.leverages.mean() * case.c
    half = np.linalg.cholesky(metric)
    left, sizes, right = np.linalg.svd(case.whole @ half, full_matrices=False)
    best = (left[:, :2] * sizes[:2]) @ right[:2] @ np.linalg.inv(half)
    assert case.loss(case.whole - case.update) == pytest.approx(case.loss(case.whole - best), rel=1e-6, abs=1e-9)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 12), rank=st.integers(1, 9), slots=st.integers(1, 6))
def test_error_is_the_largest_change_at_an_own_key_when_measured_densely(
    seed: int, count: int, rank: int, slots: int
) -> None:
    case = Case(seed, count, rank, slots)
    changed = np.linalg.norm((case.whole - case.update) @ case.keys.T, axis=0)
    largest = float((changed / np.linalg.norm(case.deltas, axis=1)).max())
    assert case.cut.error == pytest.approx(largest, rel=1e-5, abs=1e-9)


def test_cut_is_whole_when_keys_coincide_and_deltas_are_nothing() -> None:
    gram = np.ones((3, 3))
    solved = coefficients(gram, np.ones(3), [Batch(n, n + 1, Method.EMMET) for n in range(3)], 0.01)
    cut = compact(np.zeros((3, 4), np.float32), solved, gram, np.ones(3), 2, TEXT_WEIGHT)
    assert cut.error == 0
    np.testing.assert_array_equal(cut.deltas.T @ cut.mix, np.zeros((4, 3)))


@pytest.mark.parametrize("values", [{"tolerance": -0.1}, {"tolerance": float("nan")}, {"text_weight": -1.0}])
def test_settings_are_refused_when_they_mean_nothing(values: dict[str, float]) -> None:
    with pytest.raises(RequestError, match="give finite numbers"):
        CompactionConfig(**values)
