"""The growing Jacobian against dense linear algebra."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobiedit.runtime.jacobian import Floats, Jacobian

ROWS, TOKENS, KEPT, WIDTH = 2, 3, 5, 12
# Sums of twelve float32 products of size 1.
TOLERANCE = 1e-5


def draw(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Linear:
    """Read-outs that are linear in delta: their derivatives are known."""

    def __init__(self, seed: int) -> None:
        self.readouts, self.kept = draw(seed, ROWS, TOKENS, WIDTH, WIDTH), draw(seed + 1, KEPT, WIDTH, WIDTH)

    def along(self, directions: Floats) -> tuple[Floats, Floats]:
        """Return the derivatives along directions [k, D], [k, R, t, D] and [k, K, D]."""
        readouts = np.einsum("rtde,ke->krtd", self.readouts, directions)
        return readouts, np.einsum("rde,ke->krd", self.kept, directions)


def measured(linear: Linear, count: int, seed: int = 7) -> Jacobian:
    """Return a Jacobian that knows ``count`` directions of a linear function, added in two parts."""
    jacobian = Jacobian(ROWS, TOKENS, KEPT, WIDTH)
    for part in np.array_split(draw(seed, count, WIDTH), 2):
        directions = jacobian.complement(part, len(part))
        jacobian.extend(directions, *linear.along(directions), np.zeros((ROWS, len(directions)), np.bool_))
    assert jacobian.basis.shape == (count, WIDTH)
    return jacobian


def as_vectors(jacobian: Jacobian) -> Floats:
    """Return the rewriting and the kept read-outs' derivative as one matrix [(R t + K) D, D] over all of delta."""
    both = np.concatenate([jacobian.readouts.reshape(ROWS * TOKENS, WIDTH, -1), jacobian.kept])
    return np.asarray((both @ jacobian.basis).reshape(-1, WIDTH))


@settings(deadline=None)
@given(known=st.integers(0, WIDTH), candidates=st.integers(0, 20), limit=st.integers(0, 20), seed=st.integers(0, 1000))
def test_complement_is_orthonormal_and_new_when_candidates_are_any(
    known: int, candidates: int, limit: int, seed: int
) -> None:
    jacobian = Jacobian(ROWS, TOKENS, KEPT, WIDTH)
    first = jacobian.complement(draw(seed, known, WIDTH), known)
    jacobian.extend(first, *Linear(2).along(first), np.zeros((ROWS, known), np.bool_))
    rng = np.random.default_rng(seed)
    scales = 10.0 ** rng.integers(-4, 5, (candidates, 1))
    found = jacobian.complement((scales * draw(seed + 1, candidates, WIDTH)).astype(np.float32), limit)
    assert found.shape == (len(found), WIDTH)
    assert found.dtype == np.float32
    assert len(found) <= min(limit, candidates, WIDTH - len(first))
    together = np.concatenate([jacobian.basis, found])
    np.testing.assert_allclose(together @ together.T, np.eye(len(together)), atol=TOLERANCE)


def test_complement_takes_the_first_candidates_when_the_limit_is_smaller() -> None:
    candidates = draw(0, 6, WIDTH)
    found = Jacobian(ROWS, TOKENS, KEPT, WIDTH).complement(candidates, 3)
    assert found.shape == (3, WIDTH)
    np.testing.assert_allclose(found[0], candidates[0] / np.linalg.norm(candidates[0]), atol=TOLERANCE)
    q, _ = np.linalg.qr(candidates[:3].T)  # the same span, whatever the signs
    np.testing.assert_allclose(found.T @ found, q @ q.T, atol=TOLERANCE)


def test_complement_leaves_the_others_when_candidates_are_an_iterator() -> None:
    candidates = iter(np.eye(WIDTH, dtype=np.float32))
    jacobian = Jacobian(ROWS, TOKENS, KEPT, WIDTH)
    for limit in (2, 0, 3):
        jacobian.complement(candidates, limit)
    assert np.array_equal(next(candidates), np.eye(WIDTH)[5])


def test_complement_leaves_out_what_is_known_when_candidates_repeat() -> None:
    jacobian = measured(Linear(0), 3)
    known, new = jacobian.basis, draw(9, 1, WIDTH)
    inside = draw(8, 3) @ known
    nearly = inside / np.linalg.norm(inside) + 0.03 * draw(11, WIDTH) / np.sqrt(WIDTH)
    zero = np.zeros(WIDTH, np.float32)
    found = jacobian.complement([zero, known[0], -known[1], inside, nearly, new[0], 2 * new[0]], 5)
    outside = new[0] - known.T @ (known @ new[0])
    np.testing.assert_allclose(found, (outside / np.linalg.norm(outside))[None], atol=TOLERANCE)


def test_complement_is_empty_when_the_basis_spans_everything() -> None:
    jacobian = measured(Linear(0), WIDTH)
    assert jacobian.complement(draw(5, 4, WIDTH), 4).shape == (0, WIDTH)


@pytest.mark.parametrize("count", [2, 7, WIDTH])
def test_columns_are_the_dense_derivative_on_the_basis_when_measured(count: int) -> None:
    linear = Linear(3)
    jacobian = measured(linear, count)
    np.testing.assert_allclose(jacobian.readouts, linear.readouts @ jacobian.basis.T, atol=TOLERANCE)
    np.testing.assert_allclose(jacobian.kept, linear.kept @ jacobian.basis.T, atol=TOLERANCE)


@pytest.mark.parametrize("count", [2, 7, WIDTH])
def test_pulled_back_error_is_the_gradients_projection_when_columns_are_exact(count: int) -> None:
    linear, errors = Linear(3), draw(1, ROWS, TOKENS, WIDTH)
    jacobian = measured(linear, count)
    gradient = np.einsum("gtd,gtde->te", errors, linear.readouts)  # of error . readout, in delta
    projected = gradient @ jacobian.basis.T @ jacobian.basis
    np.testing.assert_allclose(jacobian.pulled_back(errors), projected, atol=10 * TOLERANCE)  # sums of products of sums


def test_pulled_back_error_is_zero_when_nothing_is_known() -> None:
    pulled = Jacobian(ROWS, TOKENS, KEPT, WIDTH).pulled_back(draw(1, ROWS, TOKENS, WIDTH))
    assert np.array_equal(pulled, np.zeros((TOKENS, WIDTH)))


@settings(deadline=None)
@given(seed=st.integers(0, 1000), length=st.floats(0.01, 100))
def test_secant_holds_and_other_directions_stay_when_corrected(seed: int, length: float) -> None:
    jacobian = measured(Linear(0), 6)
    before = as_vectors(jacobian)
    along = draw(seed, 6)
    step = np.asarray(np.float32(length) * along @ jacobian.basis / np.linalg.norm(along), np.float32)
    readouts, kept = length * draw(seed + 1, ROWS, TOKENS, WIDTH), length * draw(seed + 2, KEPT, WIDTH)
    jacobian.correct(step, readouts, kept)
    after = as_vectors(jacobian)
    changes = np.concatenate([readouts.reshape(-1), kept.reshape(-1)])
    np.testing.assert_allclose(after @ step, changes, atol=10 * TOLERANCE * max(length, 1))
    unit = step / np.linalg.norm(step)
    others = np.eye(WIDTH) - np.outer(unit, unit)
    np.testing.assert_allclose(after @ others, before @ others, atol=10 * TOLERANCE)


def test_correction_is_broydens_when_a_step_is_shown() -> None:
    jacobian = measured(Linear(0), 6)
    before, step = as_vectors(jacobian), draw(1, 6) @ jacobian.basis
    readouts, kept = draw(2, ROWS, TOKENS, WIDTH), draw(3, KEPT, WIDTH)
    jacobian.correct(step, readouts, kept)
    changes = np.concatenate([readouts.reshape(-1), kept.reshape(-1)])
    wanted = before + np.outer(changes - before @ step, step) / (step @ step)
    np.testing.assert_allclose(as_vectors(jacobian), wanted, atol=10 * TOLERANCE)


@pytest.mark.parametrize("keep", [0, 1, 4, 6, 99])
def test_oldest_columns_are_dropped_when_forgotten(keep: int) -> None:
    linear = Linear(0)
    jacobian, whole = measured(linear, 6), measured(linear, 6)
    jacobian.forget(keep)
    assert np.array_equal(jacobian.basis, whole.basis[max(6 - keep, 0) :])
    np.testing.assert_allclose(jacobian.readouts, linear.readouts @ jacobian.basis.T, atol=TOLERANCE)
    np.testing.assert_allclose(jacobian.kept, linear.kept @ jacobian.basis.T, atol=TOLERANCE)


def test_correction_changes_nothing_when_the_step_is_none_of_the_basis() -> None:
    jacobian = measured(Linear(0), 6)
    before = as_vectors(jacobian)
    outside = jacobian.complement(draw(4, 1, WIDTH), 1)[0]
    for step in (np.zeros(WIDTH, np.float32), 100 * outside):
        jacobian.correct(step, draw(1, ROWS, TOKENS, WIDTH), draw(2, KEPT, WIDTH))
        assert np.array_equal(as_vectors(jacobian), before)
