"""Rows that measure different directions in one forward."""

from __future__ import annotations

import numpy as np
import pytest

from mobiedit.runtime.row_groups import Floats, RowGroups

WIDTH, TOKENS, KEPT, OWN, HIDDEN = 7, 2, 3, 2, 5
CASES = [(1, 1), (6, 1), (6, 3), (5, 3), (4, 4)]


def draw(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def measured(of_rows: Floats, of_kept: Floats, groups: RowGroups, directions: Floats) -> tuple[Floats, Floats]:
    """Return the columns of read-outs that are linear in delta, [R, t, H, D] and [K, H, D] their derivatives."""
    each = groups.deal(directions)
    readouts = np.einsum("rthd,krd->krth", of_rows, each[:, :-1])
    alone = np.einsum("chd,kd->kch", of_kept[:OWN], groups.left(directions))
    return groups.columns(readouts, np.einsum("chd,kd->kch", of_kept, each[:, -1]), alone)


@pytest.mark.parametrize("forwards", [0, 1, 4])
@pytest.mark.parametrize(("rows", "count"), CASES)
def test_columns_are_the_derivative_when_rows_are_alike(rows: int, count: int, forwards: int) -> None:
    groups, directions = RowGroups(rows, count), draw(0, forwards * count, WIDTH)
    one = draw(1, TOKENS, HIDDEN, WIDTH)
    of_kept = draw(2, KEPT, HIDDEN, WIDTH)
    readouts, kept = measured(np.stack([one] * rows), of_kept, groups, directions)
    wanted = np.einsum("thd,kd->kth", one, directions)
    # Sums of seven float32 products of size 1, and a mean of them.
    np.testing.assert_allclose(readouts, np.repeat(wanted[:, None], rows, axis=1), atol=1e-5)
    exact = np.einsum("chd,kd->kch", of_kept, directions)
    np.testing.assert_allclose(kept[:, :OWN], exact[:, :OWN], atol=1e-5)
    measured_there = ~groups.guessed(forwards)[0]  # behind the target: what the bare row has measured
    np.testing.assert_allclose(kept[measured_there, OWN:], exact[measured_there, OWN:], atol=1e-5)
    assert not kept[~measured_there, OWN:].any()


@pytest.mark.parametrize(("rows", "count"), CASES)
def test_columns_are_the_rows_own_or_the_mean_of_those_that_measured_when_rows_differ(rows: int, count: int) -> None:
    groups, directions = RowGroups(rows, count), draw(0, 2 * count, WIDTH)
    of_rows = draw(1, rows, TOKENS, HIDDEN, WIDTH)
    readouts, _ = measured(of_rows, draw(2, KEPT, HIDDEN, WIDTH), groups, directions)
    exact = np.einsum("rthd,kd->krth", of_rows, directions)
    for column, guessed, true in zip(readouts, groups.guessed(2).T, exact, strict=True):
        np.testing.assert_allclose(column[~guessed], true[~guessed], atol=1e-5)
        np.testing.assert_allclose(
            column[guessed], np.repeat(true[~guessed].mean(0)[None], guessed.sum(), 0), atol=1e-5
        )


@pytest.mark.parametrize(("rows", "count"), CASES)
def test_every_row_measures_one_direction_a_forward_when_dealt(rows: int, count: int) -> None:
    groups, directions = RowGroups(rows, count), draw(0, 6 * count, WIDTH)
    dealt, guessed = groups.deal(directions), groups.guessed(6)
    assert dealt.shape == (6, rows + 1, WIDTH)
    assert ((~guessed).reshape(rows, 6, count).sum(axis=-1) == 1).all()
    for row in range(rows):
        np.testing.assert_array_equal(dealt[:, row], directions[~guessed[row]])
    assert (~guessed).any(axis=0).all()  # no direction is left out
    np.testing.assert_array_equal(dealt[:, -1], dealt[:, 0])  # the kept row goes with the bare one
    np.testing.assert_array_equal(groups.left(directions), directions[guessed[0]])  # and measures the rest alone
