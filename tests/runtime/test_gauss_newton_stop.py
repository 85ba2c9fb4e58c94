"""When the Gauss-Newton search ends: when each whole prompt yields the target with a margin, or it may not go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from mobiedit.runtime.gauss_newton import gauss_newton
from mobiedit.runtime.lens import Lens
from mobiedit.runtime.readout_loss import Floats
from mobiedit.runtime.search import SearchResult
from tests.runtime.gauss_newton_case import REACHABLE, REQUESTS, SMALL, Case, Chosen, Rows, terms_of

Searching = Callable[..., tuple[SearchResult, list[Floats]]]
HALF = replace(SMALL, steps=4, refinements=1, stop_probability=0.5)
"""The lens's start, a step of the lens, two epochs."""

GOOD, IMPROBABLE, NOT_GREEDY = Rows((0.6, 0.45)), Rows((0.95, 0.1)), Rows((0.99, 0.99), (0.1, -0.1))


@pytest.fixture
def search(pair: Case, lens: Lens) -> Searching:
    """Return a function that searches with chosen rows; it gives the result, and the deltas of each call."""

    def run(
        *calls: tuple[Rows, ...], stop: float = 0.5, shortened: tuple[int, ...] = ()
    ) -> tuple[SearchResult, list[Floats]]:
        loss = Chosen(pair.task.loss, *calls)
        pair.task.problem.rows = replace(pair.task.problem.rows, shortened=shortened)
        found = gauss_newton(replace(pair.task, loss=loss), replace(HALF, stop_probability=stop), lens)
        return found, loss.asked

    return run


@pytest.mark.parametrize("probabilities", [(0.6, 0.42), (0.42, 0.6), (0.95, 0.26), (0.26, 0.95), (1.0, 1.0)])
def test_search_stops_at_once_when_every_row_yields_the_target_with_a_margin(
    probabilities: tuple[float, float], search: Searching
) -> None:
    found, asked = search((Rows(probabilities),))
    assert (found.steps, found.stopped_early, len(found.looks), len(asked)) == (0, True, 1, 1)
    assert found.looks[0].target_probability == pytest.approx(sum(probabilities) / 2)
    assert not found.delta.any()


@pytest.mark.parametrize(
    "rows",
    [
        Rows((0.95, 0.24)),
        Rows((0.24, 0.95)),
        Rows((0.49, 0.49)),
        Rows((0.99, 0.99), (0.1, -0.1)),
        Rows((0.99, 0.99), (-0.1, 0.1)),
        Rows((0.99, 0.99), (-0.1, -0.1)),
        Rows((0.99, 0.99), (0.1, 0.09)),
        Rows((0.99, 0.99), (0.09, 0.1)),
        Rows((0.99, 0.99), echoing=True),
    ],
    ids=[
        "second-improbable",
        "first-improbable",
        "mean-too-low",
        "second-not-greedy",
        "first-not-greedy",
        "no-greedy",
        "second-by-a-hair",
        "first-by-a-hair",
        "echoing",
    ],
)
def test_search_goes_on_to_its_last_step_when_a_part_of_the_rule_fails(rows: Rows, search: Searching) -> None:
    found, _ = search((rows,))
    assert (found.steps, found.stopped_early) == (HALF.steps, False)


@pytest.mark.parametrize("rows", [Rows((0.95, 0.06)), Rows((0.6, 0.45), (0.1, -0.1))], ids=["improbable", "not-greedy"])
def test_search_stops_when_what_lags_is_a_row_of_a_shortened_prompt(rows: Rows, search: Searching) -> None:
    found, _ = search((rows,), shortened=(1,))
    assert (found.steps, found.stopped_early) == (0, True)


@pytest.mark.parametrize(
    "rows",
    [Rows((0.24, 0.95)), Rows((0.9, 0.09)), Rows((0.99, 0.99), (-0.1, 0.1)), Rows((0.99, 0.99), echoing=True)],
    ids=["bare-improbable", "mean-too-low", "bare-not-greedy", "echoing"],
)
def test_search_goes_on_when_it_is_not_a_shortened_prompt_alone_that_fails(rows: Rows, search: Searching) -> None:
    found, _ = search((rows,), shortened=(1,))
    assert (found.steps, found.stopped_early) == (HALF.steps, False)


@pytest.mark.parametrize("probabilities", [(0.9, 0.25), (0.25, 0.9)])
def test_search_stops_when_a_row_has_half_the_probability_and_no_less(
    probabilities: tuple[float, float], search: Searching
) -> None:
    rows = Rows(probabilities)
    least = terms_of((rows,)).row_probabilities.min()  # 0.25 as float32 rounds it
    enough, _ = search((rows,), stop=2 * float(least))
    short, _ = search((rows,), stop=2 * float(np.nextafter(least, np.float32(1))))
    assert (enough.steps, enough.stopped_early) == (0, True)
    assert (short.steps, short.stopped_early) == (HALF.steps, False)


def test_search_stops_when_the_mean_is_the_probability_and_no_less(search: Searching) -> None:
    rows = Rows((0.6, 0.4))
    mean = terms_of((rows,)).target_probability[0]  # 0.5 as float32 rounds it
    enough, _ = search((rows,), stop=float(mean))
    short, _ = search((rows,), stop=float(np.nextafter(mean, np.float32(1))))
    assert (enough.steps, enough.stopped_early) == (0, True)
    assert (short.steps, short.stopped_early) == (HALF.steps, False)


@pytest.mark.parametrize(
    ("steps", "before"),
    [(1, IMPROBABLE), (1, NOT_GREEDY), (2, IMPROBABLE), (3, IMPROBABLE), (3, NOT_GREEDY), (4, NOT_GREEDY)],
    ids=lambda value: str(value) if isinstance(value, int) else "-".join(map(str, value.probabilities)),
)
def test_search_ends_at_the_first_step_that_fulfils_the_rule_when_none_did_before(
    steps: int, before: Rows, search: Searching
) -> None:
    """A point that is not greedy is left for one that is, although its loss is lower."""
    found, asked = search(*[(before,)] * steps, (GOOD,))
    assert (found.steps, found.stopped_early) == (steps, True)
    assert found.looks[-1].target_probability == pytest.approx(sum(GOOD.probabilities) / 2)
    *_, last, longer = asked
    assert len(asked) == steps + 2
    assert any(np.array_equal(found.delta, delta) for delta in last)
    np.testing.assert_allclose(longer, 1.1 * found.delta[None], rtol=1e-6)  # no better, and so not taken


def test_shortest_start_that_fulfils_the_rule_is_taken_when_some_do(search: Searching) -> None:
    found, asked = search((IMPROBABLE,), (IMPROBABLE, GOOD, Rows((0.9, 0.9)), NOT_GREEDY), (IMPROBABLE,))
    assert (found.steps, found.stopped_early) == (1, True)
    assert np.array_equal(found.delta, asked[1][1])


def test_search_stops_at_once_when_the_model_gives_the_target_already(
    open_case: Callable[..., Case], lens: Lens
) -> None:
    probabilities = np.exp(open_case(REQUESTS["one-token"], ("{}",)).answer())
    case = open_case(REQUESTS["one-token"], ("{}",), (int(probabilities.argmax()),))
    found = gauss_newton(case.task, replace(SMALL, stop_probability=0.99 * float(probabilities.max())), lens)
    assert (found.steps, found.stopped_early) == (0, True)
    assert not found.delta.any()
    assert len(found.looks) == 1


def test_search_goes_on_when_the_target_is_the_greedy_answer_but_improbable(
    open_case: Callable[..., Case], lens: Lens
) -> None:
    probabilities = np.exp(open_case(REQUESTS["one-token"], ("{}",)).answer())
    case = open_case(REQUESTS["one-token"], ("{}",), (int(probabilities.argmax()),))
    found = gauss_newton(case.task, replace(SMALL, stop_probability=1.01 * float(probabilities.max())), lens)
    assert (found.steps > 0, found.stopped_early) == (True, True)
    assert found.looks[-1].target_probability > probabilities.max()


def test_search_goes_on_when_the_target_is_probable_enough_but_not_greedy(case: Case, lens: Lens) -> None:
    found = gauss_newton(case.task, replace(SMALL, stop_probability=1e-6), lens)
    assert found.looks[0].target_probability > 1e-6
    assert not case.loss(np.zeros_like(found.delta)).greedy.all()
    assert found.steps > 0


def test_search_takes_a_step_when_the_lenss_start_is_enough(bare: Case, lens: Lens) -> None:
    """No step would say that the model gave the target already."""
    found = gauss_newton(bare.task, REACHABLE, lens)
    blank = {name: np.zeros_like(getattr(lens, name)) for name in ("start", "context")}
    answer = (found.delta / bare.task.value_norm).astype(np.float16)
    again = gauss_newton(bare.task, replace(REACHABLE, stop_probability=0.12), replace(lens, bias=answer, **blank))
    assert (again.steps, again.stopped_early) == (1, True)
    assert [look.forwards for look in again.looks] == [0, 4, 5]  # the last one of a longer delta
    assert again.looks[1].target_probability >= 0.12
    assert again.delta.any()


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_steps_are_no_more_than_allowed_when_the_target_is_far(steps: int, case: Case, lens: Lens) -> None:
    found = gauss_newton(case.task, replace(SMALL, steps=steps, refinements=1), lens)
    assert found.steps == steps
    assert not found.stopped_early
    assert [p.steps for p in case.progress] == [steps] * len(found.looks)
    assert max(p.step for p in case.progress) <= steps


@pytest.mark.parametrize("forwards", [1, 2, 3, 30])
def test_no_epoch_begins_when_the_forwards_are_spent(forwards: int, case: Case, lens: Lens) -> None:
    config = replace(SMALL, steps=80, forwards=forwards)
    found = gauss_newton(case.task, config, lens)
    epoch = SMALL.directions + 4
    assert case.meter.forwards < max(forwards, 3) + epoch
    assert not found.stopped_early
    assert found.looks[-1].forwards <= case.meter.forwards
