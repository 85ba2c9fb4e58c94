"""The Gauss-Newton search on a tiny real model, whose weights were never trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from mobiedit.runtime import Bundle, EditConfig, LossConfig
from mobiedit.runtime.gauss_newton import gauss_newton
from mobiedit.runtime.lens import Lens
from mobiedit.runtime.readout_loss import log_softmax
from tests.runtime.gauss_newton_case import REACHABLE, REQUESTS, SMALL, Case, losses_of


def test_target_is_reached_when_there_is_one_row(bare: Case, lens: Lens) -> None:
    found = gauss_newton(bare.task, REACHABLE, lens)
    terms = bare.loss(found.delta)
    assert found.stopped_early
    assert terms.greedy.all()
    assert float(terms.target_probability[0]) >= REACHABLE.stop_probability
    assert losses_of(found)[-1] < losses_of(found)[0] - 3
    assert found.looks[-1].target_probability == pytest.approx(float(terms.target_probability[0]), abs=1e-5)


def test_echo_is_less_likely_when_it_has_a_weight(open_case: Callable[..., Case], lens: Lens) -> None:
    def searched(factor: float) -> tuple[float, float]:
        case = open_case(REQUESTS["one-token"], ("{}",), config=LossConfig(echo_factor=factor), echo_tokens=64)
        delta = gauss_newton(case.task, replace(REACHABLE, stop_probability=0.5), lens).delta
        _, kept = case.task.problem.readouts(delta[None])
        behind = log_softmax(case.task.decoder.run_head(kept[0, -2:]))
        return float(case.loss(delta).nll[0]), float(np.exp(behind[:, case.task.problem.rows.target[0]]).max())

    (nll, echo), (weighed_nll, weighed_echo) = searched(0.0), searched(10.0)
    assert weighed_echo < echo / 2
    assert weighed_nll < nll + 0.5


@pytest.mark.parametrize("better", [True, False])
def test_delta_ends_a_tenth_longer_when_that_is_more_probable(
    bare: Case, lens: Lens, better: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not better:
        monkeypatch.setattr("mobiedit.runtime.gauss_newton._LENGTHENED", 1e4)  # which no answer survives
    found = gauss_newton(bare.task, REACHABLE, lens)
    tried, factor = bare.asked[-1], 1.1 if better else 1e4
    probability, shorter = (float(bare.loss(delta).target_probability[0]) for delta in (tried, tried / factor))
    assert found.stopped_early
    assert (probability > shorter) is better
    np.testing.assert_allclose(found.delta, tried if better else tried / factor, rtol=1e-5)
    assert found.looks[-1].target_probability == pytest.approx(max(probability, shorter), abs=1e-5)


def test_loss_falls_and_never_rises_when_searched(case: Case, lens: Lens) -> None:
    found = gauss_newton(case.task, replace(SMALL, steps=30, norm_penalty=0.0), lens)
    losses = losses_of(found)
    assert losses[1:] == sorted(losses[1:], reverse=True)  # the first is without delta
    assert losses[-1] < losses[0] - 0.3
    # The batch of one may sum in another order than the batch that the delta was found in.
    assert float(case.loss(found.delta).total[0]) == pytest.approx(losses[-1], abs=1e-4)
    assert found.delta.dtype == np.float32
    assert found.delta.shape == case.task.value.shape


def test_first_look_is_without_delta_and_the_second_at_the_best_length_of_the_lenss_start(
    case: Case, lens: Lens
) -> None:
    found = gauss_newton(case.task, SMALL, lens)
    zero, *starts = case.asked[:5]
    unembedding = case.task.decoder.unembedding(np.array(case.task.problem.rows.target))
    wanted = lens.first_delta(unembedding, case.task.context) * case.task.value_norm
    assert not zero.any()
    for start, scale in zip(starts, (0.4, 0.6, 0.8, 1.0), strict=True):
        np.testing.assert_allclose(start, scale * wanted, rtol=1e-5)
    losses = np.array([float(case.loss(delta).total[0]) for delta in (zero, *starts)])
    lengths = np.array([float(delta @ delta) for delta in (zero, *starts)]) / case.task.value_norm**2
    objectives = losses + SMALL.norm_penalty * lengths
    best = 1 + int(np.argmin(objectives[1:]))
    chosen = losses[0] if objectives[0] < objectives[best] - 0.3 else losses[best]
    assert losses_of(found)[0] == pytest.approx(losses[0], abs=1e-4)  # a batch of one, as above
    assert losses_of(found)[1] == pytest.approx(chosen, abs=1e-4)


def test_delta_is_shorter_when_its_length_costs_more(case: Case, lens: Lens) -> None:
    lengths = [
        float(np.linalg.norm(gauss_newton(case.task, replace(SMALL, steps=12, norm_penalty=penalty), lens).delta))
        for penalty in (0.0, 0.3, 30.0)
    ]
    assert lengths[0] > lengths[1] > lengths[2]


def test_forwards_are_the_meters_when_searched(case: Case, lens: Lens) -> None:
    found = gauss_newton(case.task, SMALL, lens)
    forwards = [look.forwards for look in found.looks]
    assert forwards[:2] == [0, 4]
    assert forwards == sorted(forwards)
    assert case.meter.forwards >= forwards[-1]
    # Only a last step of the lens that was refused is behind the last look, when no epoch followed.
    assert case.meter.forwards - forwards[-1] <= 1
    differences = case.meter.forwards - (len(case.asked) - 1)  # the prefill gives the start
    assert differences >= SMALL.directions


@pytest.mark.parametrize("clamp", [0.05, 0.5])
def test_delta_stays_within_the_clamp_when_the_lens_asks_for_more(clamp: float, case: Case, lens: Lens) -> None:
    good = gauss_newton(case.task, replace(SMALL, clamp=clamp), lens).delta / case.task.value_norm
    blank = {name: np.zeros_like(getattr(lens, name)) for name in ("start", "context")}
    case.asked.clear()
    loud = replace(lens, bias=good.astype(np.float16), step=100 * lens.step, **blank)
    found = gauss_newton(case.task, replace(SMALL, clamp=clamp, steps=2), loud)  # no epoch, whose failure widens it
    lengths = [float(np.linalg.norm(delta)) for delta in (*case.asked, found.delta)]
    assert max(lengths) <= clamp * case.task.value_norm * (1 + 1e-6)  # the rounding of a norm
    assert max(lengths) == pytest.approx(clamp * case.task.value_norm, rel=1e-5)


def test_start_is_left_alone_when_it_is_much_worse_than_none(case: Case, lens: Lens) -> None:
    good = gauss_newton(case.task, SMALL, lens).delta / case.task.value_norm
    blank = {name: np.zeros_like(getattr(lens, name)) for name in ("start", "context", "step")}
    found = gauss_newton(case.task, SMALL, replace(lens, bias=(-3 * good).astype(np.float16), **blank))
    assert losses_of(found)[1] == losses_of(found)[0]
    assert found.steps > 1
    assert losses_of(found)[-1] < losses_of(found)[0] - 0.3


def test_loss_falls_when_the_lens_knows_directions_alone(case: Case, lens: Lens) -> None:
    blank = {name: np.zeros_like(getattr(lens, name)) for name in ("centre", "start", "context", "bias", "step")}
    any_basis = np.linalg.qr(np.random.default_rng(0).standard_normal((64, 64)))[0].astype(np.float16)
    found = gauss_newton(case.task, SMALL, replace(lens, subspace=any_basis, **blank))
    assert losses_of(found)[-1] < losses_of(found)[0] - 0.1


def test_delta_is_the_same_bit_for_bit_when_searched_again(open_case: Callable[..., Case], lens: Lens) -> None:
    one, two = (gauss_newton(open_case(REQUESTS["one-token"]).task, SMALL, lens) for _ in range(2))
    assert one.delta.tobytes() == two.delta.tobytes()
    assert one.looks == two.looks


@pytest.mark.parametrize("directions", [2, 3, 64, 200])
def test_search_ends_when_directions_are_few_or_more_than_the_width(
    directions: int, open_case: Callable[..., Case], lens: Lens
) -> None:
    case = open_case(REQUESTS["one-token"])
    found = gauss_newton(case.task, replace(SMALL, directions=directions, steps=90, forwards=10_000), lens)
    assert losses_of(found)[-1] < losses_of(found)[0]


def test_search_gives_up_without_harm_when_there_is_one_direction(open_case: Callable[..., Case], lens: Lens) -> None:
    case = open_case(REQUESTS["one-token"])
    found = gauss_newton(case.task, replace(SMALL, directions=1, steps=90, forwards=10_000), lens)
    assert (found.stopped_early, found.steps < 90) == (False, True)
    assert losses_of(found)[-1] <= losses_of(found)[0]


@pytest.mark.parametrize("changes", [{"top_tokens": 10_000}, {"top_tokens": 1}, {"subspace_directions": 99}])
def test_loss_falls_when_a_setting_is_beyond_what_there_is(changes: dict[str, int], case: Case, lens: Lens) -> None:
    found = gauss_newton(case.task, replace(SMALL, **changes), lens)
    assert losses_of(found)[-1] < losses_of(found)[0]


def test_report_tells_every_look_when_searched(case: Case, lens: Lens) -> None:
    found = gauss_newton(case.task, SMALL, lens)
    assert [p.loss for p in case.progress] == losses_of(found)
    assert [p.target_probability for p in case.progress] == [look.target_probability for look in found.looks]
    steps = [p.step for p in case.progress]
    assert steps == sorted(steps)


def test_edit_is_made_by_gauss_newton_when_no_optimizer_is_named(bundle: Bundle) -> None:
    request = REQUESTS["one-token"]
    before = bundle.score(request.text, request.target)[0]
    result = bundle.edit(request.prompt, request.subject, request.target, config=EditConfig(force=True))
    assert result.optimizer == "gn"
    (edit,) = bundle.edits()
    assert edit.report["steps"] == result.steps > 0
    assert edit.delta.any()
    assert bundle.score(request.text, request.target)[0] > before
