"""Who measures what in the Gauss-Newton search: groups of rows, until a row turns out to be unlike the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mobiedit.runtime.gauss_newton import _Point, _Search
from mobiedit.runtime.lens import Lens
from tests.runtime.gauss_newton_case import SMALL, TOLERANCE, Case, Chosen, Rows, away, central_differences

CONFIG = replace(SMALL, groups=2, mu=0.01, top_tokens=10_000)


def opened(case: Case, lens: Lens) -> tuple[_Search, _Point]:
    """Return a search and a point of it whose rows are even."""
    search, point = away(case, CONFIG, lens)
    return search, replace(point, uneven=False)


def measure(search: _Search, point: _Point) -> None:
    search._measure(point, search._lack(search._top(point.readouts)))


@pytest.mark.parametrize("uneven", [False, True])
def test_columns_are_central_differences_where_a_row_has_measured(uneven: bool, case: Case, lens: Lens) -> None:
    search, point = opened(case, lens)
    measure(search, replace(point, uneven=uneven))
    jacobian = search._jacobian
    assert len(jacobian.basis) == CONFIG.directions * (1 if uneven else 2)
    assert jacobian.guessed.mean() == (0 if uneven else 0.5)
    differences, of_kept = central_differences(case.task, point.delta, jacobian.basis)
    wanted = np.moveaxis(differences, 0, -1)  # [R, t, D, n]
    own = ~jacobian.guessed
    for row, columns in enumerate(jacobian.readouts):
        found, true = columns[..., own[row]], wanted[row][..., own[row]]
        assert np.linalg.norm(found - true) < TOLERANCE * np.linalg.norm(true)
    kept = np.moveaxis(of_kept, 0, -1)[: len(case.task.problem.rows.kept.readouts)]  # all of it is measured
    assert np.linalg.norm(jacobian.kept - kept) < TOLERANCE * np.linalg.norm(kept)


def test_every_row_measures_when_an_epoch_has_failed(case: Case, lens: Lens) -> None:
    search, point = opened(case, lens)
    search._trust = search._trust.after_failure(1.0).after_success(1.0)
    measure(search, point)
    assert not search._jacobian.guessed.any()


def test_rows_are_uneven_when_one_stays_behind_the_others(case: Case, lens: Lens) -> None:
    search, point = opened(case, lens)
    (initial,) = search._points(point.delta[None], point.readouts[None], point.kept[None])
    assert not initial.uneven  # without training no target is likely
    strict = replace(CONFIG, stop_probability=2 * initial.probability)
    (near,) = _Search(case.task, strict, lens)._points(point.delta[None], point.readouts[None], point.kept[None])
    rows = case.task.loss(point.readouts[None], point.kept[None], point.delta[None]).row_probabilities[0]
    assert near.uneven == bool(rows.min() < rows.mean() / 2)
    reached = replace(CONFIG, stop_probability=0.9 * initial.probability)
    (there,) = _Search(case.task, reached, lens)._points(point.delta[None], point.readouts[None], point.kept[None])
    assert there.uneven == (not there.safe)
    assert there.uneven  # greedy decoding yields something else


@pytest.mark.parametrize("probabilities", [(0.8, 0.05), (0.05, 0.8)])
def test_rows_are_uneven_when_what_stays_behind_is_a_shortened_prompt_too(
    probabilities: tuple[float, float], pair: Case, lens: Lens
) -> None:
    """It is not waited for, but what the others measure says little of it."""
    problem, zero = pair.task.problem, np.zeros((1, len(pair.task.value)), np.float32)
    problem.rows = replace(problem.rows, shortened=(1,))
    told = replace(pair.task, loss=Chosen(pair.task.loss, (Rows(probabilities),)))
    (found,) = _Search(told, CONFIG, lens)._points(zero, problem.initial_readouts, problem.initial_kept)
    assert found.uneven
