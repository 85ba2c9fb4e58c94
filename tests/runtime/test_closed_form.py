"""The joint directions of many edits against dense linear algebra with F x F matrices, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mobiedit.runtime.closed_form import (
    SILENT,
    Batch,
    Method,
    coefficients,
    joint_directions,
    levels_of_same_keys,
    lower_inverse,
    scaled_gram,
)
from mobiedit.runtime.separation import INFLATION

Doubles = NDArray[np.float64]

RIDGE = 0.01
NO_RIDGE = 1e-9
# All in float64; no system here has a condition number above 1e6, since no two keys are near one another.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Case:
    """Keys [N, F] under statistics C [F, F], deltas [N, D], and batches of them."""

    keys: Doubles
    c: Doubles
    deltas: Doubles
    sizes: tuple[int, ...]

    @staticmethod
    def draw(seed: int, sizes: tuple[int, ...], width: int) -> Case:
        """Keys fewer than F, at random angles, with leverages that differ."""
        rng = np.random.default_rng(seed)
        sample = rng.standard_normal((2 * width, width))
        c = sample.T @ sample / (2 * width) + 0.1 * np.eye(width)
        keys = rng.standard_normal((sum(sizes), width)) * rng.uniform(0.5, 2.0, (sum(sizes), 1))
        return Case(keys, c, rng.standard_normal((sum(sizes), 5)), sizes)

    @property
    def solved(self) -> Doubles:
        """[N, F] C^-1 k_n."""
        return np.linalg.solve(self.c, self.keys.T).T

    @property
    def leverages(self) -> Doubles:
        return np.einsum("nf,nf->n", self.keys, self.solved)

    @property
    def lone(self) -> Doubles:
        """[N, F] the direction of each edit if it were the only one."""
        return self.solved / self.leverages[:, None]

    def batches(self, method: Method) -> list[Batch]:
        ends = np.cumsum(self.sizes)
        return [Batch(int(end - size), int(end), method) for size, end in zip(self.sizes, ends, strict=True)]

    def directions(self, method: Method, ridge: float = RIDGE) -> Doubles:
        """[N, F] the joint directions."""
        gram = scaled_gram(self.keys, self.lone, self.leverages)
        return coefficients(gram, self.leverages, self.batches(method), ridge) @ self.lone

    def update(self, method: Method, ridge: float = RIDGE) -> Doubles:
        """[D, F] what is added to the weight."""
        return self.deltas.T @ self.directions(method, ridge)


# At most 9 keys of at least 12 components: none is in the span of the others.
cases = given(
    case=st.builds(
        Case.draw,
        st.integers(0, 2**32 - 1),
        st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple),
        st.integers(12, 24),
    )
)


@settings(deadline=None)
@cases
def test_gated_edits_are_silent_at_keys_before_them_and_of_their_batch(case: Case) -> None:
    """Unless that would lengthen a direction too much on text."""
    directions, gram = case.directions(Method.GATED), scaled_gram(case.keys, case.lone, case.leverages)
    activations, lengths = directions @ case.keys.T, np.sqrt(case.leverages)
    rows = coefficients(gram, case.leverages, case.batches(Method.GATED), RIDGE)
    np.testing.assert_allclose(np.diag(activations), 1, atol=TOLERANCE)
    for batch in case.batches(Method.GATED):
        for place in range(batch.start, batch.stop):
            bounds = SILENT * lengths[place] / lengths[: batch.stop]
            bounds[place] = 1
            for other in np.delete(np.arange(batch.stop), place):
                if activations[place, other] <= SILENT + 0.021 * lengths[other] / lengths[place]:
                    continue
                held = [*np.flatnonzero(rows[place]), other]
                needed = np.linalg.solve(gram[np.ix_(held, held)], bounds[held])
                assert not 0 < needed @ bounds[held] <= INFLATION
    growth = np.einsum("nf,fg,ng->n", directions, case.c, directions) * case.leverages
    assert growth.max() <= INFLATION + TOLERANCE


def test_gated_edits_direction_is_its_own_to_the_bit_when_no_other_key_is_near() -> None:
    case = Case.draw(0, (1, 2, 1), 400)
    gram = scaled_gram(case.keys, case.lone, case.leverages)
    assert np.abs(gram - np.eye(4)).max() < SILENT / 2
    lone = case.lone.astype(np.float32)
    solved = coefficients(gram, case.leverages, case.batches(Method.GATED), RIDGE)
    np.testing.assert_array_equal(joint_directions(solved, lone), lone)


@settings(deadline=None)
@cases
def test_rome_is_the_sum_of_published_updates_when_edits_are_any(case: Case) -> None:
    """Meng et al. 2022, eq. 2: W + (v* - W k)(C^-1 k)^T / (k^T C^-1 k), one after another."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((5, case.keys.shape[1]))
    updated = weight
    inverse = np.linalg.inv(case.c)
    for key, delta in zip(case.keys, case.deltas, strict=True):
        value = updated @ key + delta
        updated = updated + np.outer(value - updated @ key, inverse @ key) / (key @ inverse @ key)
    np.testing.assert_allclose(weight + case.update(Method.ROME), updated, atol=TOLERANCE)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 6), width=st.integers(12, 24))
def test_memit_is_the_published_least_squares_when_a_batch_is_alone(seed: int, count: int, width: int) -> None:
    """Meng et al. 2023, eq. 14: R K^T (lambda C + K K^T)^-1, K with a key a column.

    The ridge is relative to each key's leverage, so this is the published problem with the residuals weighted by
    1 / g_n: the least of ``ridge tr(X C X^T) + sum_n |X k_n - d_n|^2 / g_n``. With one leverage for all it is the
    published one itself, with lambda = ridge g.
    """
    case = Case.draw(seed, (count,), width)
    weights = np.diag(1 / case.leverages)
    keys = case.keys.T
    dense = case.deltas.T @ weights @ keys.T @ np.linalg.inv(RIDGE * case.c + keys @ weights @ keys.T)
    np.testing.assert_allclose(case.update(Method.MEMIT), dense, atol=TOLERANCE)
    even = Case(case.keys / np.sqrt(case.leverages)[:, None], case.c, case.deltas, case.sizes)
    keys = even.keys.T
    published = even.deltas.T @ keys.T @ np.linalg.inv(RIDGE * even.c + keys @ keys.T)
    np.testing.assert_allclose(even.update(Method.MEMIT), published, atol=TOLERANCE)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 6), width=st.integers(12, 24))
def test_emmet_is_the_constrained_minimum_when_a_batch_is_alone(seed: int, count: int, width: int) -> None:
    """Gupta et al. 2024: the least tr(X C X^T) with X k_n = d_n, by its Lagrangian as one dense system."""
    case = Case.draw(seed, (count,), width)
    system = np.block([[2 * case.c, case.keys.T], [case.keys, np.zeros((count, count))]])
    wanted = np.vstack([np.zeros((width, 5)), case.deltas])
    dense = np.linalg.solve(system, wanted)[:width].T
    # The tiny ridge of the equality is 1e-6 of each leverage.
    np.testing.assert_allclose(case.update(Method.EMMET), dense, atol=1e-3 * np.abs(dense).max())


@settings(deadline=None)
@cases
def test_sequence_is_the_constrained_minimum_when_the_ridge_vanishes(case: Case) -> None:
    """Each batch: the least tr(X C X^T) with X k_n = d_n, and X k_m = 0 at every earlier batch's key."""
    width, dense = case.keys.shape[1], 0
    for batch in case.batches(Method.EMMET):
        bound = case.keys[: batch.stop]
        wanted = np.where(np.arange(batch.stop)[:, None] >= batch.start, case.deltas[: batch.stop], 0)
        system = np.block([[2 * case.c, bound.T], [bound, np.zeros((batch.stop, batch.stop))]])
        dense += np.linalg.solve(system, np.vstack([np.zeros((width, 5)), wanted]))[:width].T
    solved = case.update(Method.EMMET, NO_RIDGE)
    np.testing.assert_allclose(solved, dense, atol=1e-3 * np.abs(dense).max())
    for batch in case.batches(Method.EMMET):  # so that every fact's own value is exactly what the search found
        own = case.directions(Method.EMMET, NO_RIDGE)[batch.start :]
        seen = own @ case.keys[: batch.stop].T
        expected = np.eye(len(case.keys))[batch.start :, : batch.stop]
        np.testing.assert_allclose(np.triu(seen.T).T, np.triu(expected.T).T, atol=1e-3 * np.abs(seen).max())


@settings(deadline=None)
@cases
def test_own_key_gets_the_whole_delta_when_edits_are_emmet(case: Case) -> None:
    own = np.einsum("nf,nf->n", case.directions(Method.EMMET), case.keys)
    np.testing.assert_allclose(own, 1, atol=TOLERANCE)


@settings(deadline=None)
@cases
def test_first_edits_stay_when_more_are_solved_with_them(case: Case) -> None:
    """So what was checked once is still what is in force; and undo of the last is the set without it."""
    for method in Method:
        whole = case.directions(method)
        count = case.batches(method)[-1].start
        if count:
            fewer = Case(case.keys[:count], case.c, case.deltas[:count], case.sizes[:-1])
            np.testing.assert_allclose(whole[:count], fewer.directions(method), atol=TOLERANCE)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), method=st.sampled_from(Method))
def test_order_within_a_batch_means_nothing(seed: int, method: Method) -> None:
    case = Case.draw(seed, (2, 4), 16)
    turned = np.array([0, 1, 5, 3, 2, 4])
    other = Case(case.keys[turned], case.c, case.deltas[turned], case.sizes)
    np.testing.assert_allclose(case.update(method), other.update(method), atol=TOLERANCE)


@pytest.mark.parametrize("method", [Method.ROME, Method.EMMET])
def test_single_edit_has_its_own_direction_to_the_bit(method: Method) -> None:
    rng = np.random.default_rng(3)
    for leverage in (1e-3, 0.7, 123.456):
        direction = rng.standard_normal((1, 50)).astype(np.float32)
        solved = coefficients(np.eye(1), np.array([leverage]), [Batch(0, 1, method)], RIDGE)
        assert np.array_equal(joint_directions(solved, direction), direction)


def test_single_edit_shrinks_by_the_ridge_when_it_is_memit() -> None:
    solved = coefficients(np.eye(1), np.array([3.0]), [Batch(0, 1, Method.MEMIT)], RIDGE)
    assert solved[0, 0] == pytest.approx(1 / (1 + RIDGE))


def test_lone_edits_of_rome_are_theirs_to_the_bit_when_others_are_emmet() -> None:
    case = Case.draw(0, (1, 1, 1), 12)
    gram = scaled_gram(case.keys, case.lone, case.leverages)
    batches = [Batch(0, 1, Method.EMMET), Batch(1, 2, Method.ROME), Batch(2, 3, Method.EMMET)]
    lone = case.lone.astype(np.float32)
    joint = joint_directions(coefficients(gram, case.leverages, batches, RIDGE), lone)
    assert np.array_equal(joint[:2], lone[:2])
    # The last one leaves both alone, the second one's key as well.
    assert np.abs(joint[2] @ case.keys[:2].T).max() < 0.1 * np.abs(lone[2] @ case.keys[:2].T).max()


@pytest.mark.parametrize("copies", [2, 5])
def test_later_edit_has_its_own_direction_when_its_key_is_an_earlier_ones(copies: int) -> None:
    """Both deltas add at that key: the later one was searched for with the earlier in force."""
    case = Case.draw(1, (1,), 12)
    case = Case(np.repeat(case.keys, copies, axis=0), case.c, np.repeat(case.deltas, copies, axis=0), (1,) * copies)
    np.testing.assert_allclose(case.directions(Method.EMMET), case.lone, atol=TOLERANCE * np.abs(case.lone).max())


def test_products_by_blocks_are_whole_products_when_edits_are_many() -> None:
    case = Case.draw(2, (1,) * 300, 320)
    gram = scaled_gram(case.keys, case.lone, case.leverages)
    lengths = np.sqrt(case.leverages)
    np.testing.assert_allclose(gram, case.keys @ case.solved.T / lengths / lengths[:, None], atol=TOLERANCE)
    solved = coefficients(gram, case.leverages, case.batches(Method.EMMET), RIDGE)
    lone = case.lone.astype(np.float32)
    whole = solved @ lone.astype(np.float64)
    # float32 sums of 300 terms.
    np.testing.assert_allclose(joint_directions(solved, lone), whole, atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize("size", [1, 63, 64, 65, 200])
def test_lower_inverse_is_the_inverse_when_the_size_is_any(size: int) -> None:
    lower = np.tril(np.random.default_rng(size).standard_normal((size, size))) / size + np.eye(size)
    np.testing.assert_allclose(lower_inverse(lower) @ lower, np.eye(size), atol=TOLERANCE)


def test_gram_of_no_model_is_refused_when_it_is_solved() -> None:
    gram = np.array([[1.0, 3.0], [3.0, 1.0]])
    with pytest.raises(np.linalg.LinAlgError):
        coefficients(gram, np.ones(2), [Batch(0, 1, Method.EMMET), Batch(1, 2, Method.EMMET)], RIDGE)


@settings(deadline=None)
@given(picks=st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_levels_part_equal_keys_when_some_are_there_again(picks: list[int]) -> None:
    directions = np.eye(4)[picks] + 0.01
    lengths = np.linalg.norm(directions, axis=1)
    gram = directions @ directions.T / lengths / lengths[:, None]
    levels = levels_of_same_keys(gram, 0.9)
    assert levels == tuple(picks[:place].count(pick) for place, pick in enumerate(picks))
