"""What a Gauss-Newton search changes behind good and bad epochs."""

from __future__ import annotations

import pytest

from mobiedit.runtime.configuration import GaussNewtonConfig
from mobiedit.runtime.trust import DAMPINGS, GIVE_UP, Trust

CONFIG = GaussNewtonConfig(damping=2.0, mu=0.08, clamp=5.0)


def failed(times: int, norm: float = 1.0) -> Trust:
    trust = Trust.full(CONFIG)
    for _ in range(times):
        trust = trust.after_failure(norm)
    return trust


def test_settings_are_the_configured_ones_when_a_search_begins() -> None:
    assert Trust.full(CONFIG) == Trust(CONFIG, damping=2.0, mu=0.08, clamp=5.0, failures=0, alike=True)


def test_epochs_are_more_careful_when_one_failed() -> None:
    assert failed(1) == Trust(CONFIG, damping=6.0, mu=0.04, clamp=5.0, failures=1, alike=False)


def test_damping_stays_bounded_when_many_epochs_fail() -> None:
    dampings = [failed(times).damping for times in range(GIVE_UP)]
    assert dampings == sorted(dampings)
    assert dampings[-1] == dampings[-2] == 16.0


def test_perturbation_stays_a_quarter_as_long_when_many_epochs_fail() -> None:
    assert [failed(times).mu for times in range(5)] == pytest.approx([0.08, 0.04, 0.02, 0.02, 0.02])


@pytest.mark.parametrize("factor", DAMPINGS)
def test_settings_return_when_an_epoch_succeeds(factor: float) -> None:
    trust = failed(2).after_success(factor)
    assert (trust.mu, trust.failures) == (0.08, 0)
    assert not trust.alike  # rows that were unlike remain so
    assert trust.damping == factor * failed(2).damping


def test_clamp_widens_to_twice_when_delta_is_stuck_at_it() -> None:
    trust, clamps = Trust.full(CONFIG), []
    for _ in range(5):
        trust = trust.after_failure(trust.clamp)
        clamps.append(trust.clamp)
    assert clamps == pytest.approx([6.25, 7.8125, 9.765625, 10.0, 10.0])


def test_clamp_stays_when_delta_is_shorter() -> None:
    assert failed(3, norm=0.97 * CONFIG.clamp).clamp == CONFIG.clamp


def test_a_wider_clamp_stays_when_an_epoch_succeeds() -> None:
    assert failed(1, norm=CONFIG.clamp).after_success(1.0).clamp == 1.25 * CONFIG.clamp


def test_trust_is_lost_when_all_epochs_in_a_row_failed() -> None:
    assert [failed(times).lost for times in (0, GIVE_UP - 1, GIVE_UP)] == [False, False, True]
    assert not failed(GIVE_UP - 1).after_success(1.0).after_failure(1.0).lost
