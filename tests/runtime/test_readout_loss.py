"""The loss against torch: likelihood, divergence, decay, and the flags of the stopping rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch reader knows
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mobiedit.runtime.configuration import LossConfig
from mobiedit.runtime.readout_loss import Floats, LossTerms, ReadoutLoss, log_softmax

WIDTH, VOCABULARY, KEPT = 8, 30, 3
WEIGHT = np.random.default_rng(0).standard_normal((WIDTH, VOCABULARY)).astype(np.float32)
# float32 sums of 30 terms against float64 ones.
TOLERANCE = 1e-5


class Head:
    """A vocabulary projection that remembers how many states it was given at once."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, hidden: Floats) -> Floats:
        self.sizes.append(len(hidden))
        return hidden @ WEIGHT


def states(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal((*shape, WIDTH)).astype(np.float32)


def logits_of(hidden: Floats) -> torch.Tensor:
    return torch.from_numpy(hidden.astype(np.float64) @ WEIGHT.astype(np.float64))


def loss_of(
    target: tuple[int, ...], config: LossConfig, value_norm: float = 1.0, head: Head | None = None, behind: int = 0
) -> ReadoutLoss:
    before = log_softmax(states(9, KEPT) @ WEIGHT)
    return ReadoutLoss(head or Head(), target, before, value_norm, config, behind)


def test_log_probs_equal_cross_entropy_when_target_has_several_tokens() -> None:
    target, readouts = (3, 0, 29), states(1, 4, 5, 3)
    terms = loss_of(target, LossConfig(kl_factor=0, weight_decay=0))(readouts, states(2, 4, KEPT), states(3, 4))
    flat = logits_of(readouts).reshape(-1, VOCABULARY)
    wanted = F.cross_entropy(flat, torch.tensor(target).repeat(20), reduction="none").reshape(4, 5, 3)
    np.testing.assert_allclose(-terms.token_log_probs, wanted.numpy(), atol=TOLERANCE)
    np.testing.assert_allclose(terms.nll, wanted.mean(dim=(1, 2)).numpy(), atol=TOLERANCE)
    np.testing.assert_allclose(terms.total, terms.nll, atol=TOLERANCE)


@pytest.mark.parametrize("factor", [0.0625, 2.0])
def test_total_adds_the_sum_of_the_divergences_from_before_when_the_kept_row_moves(factor: float) -> None:
    readouts, kept = states(1, 4, 2, 1), states(2, 4, KEPT)
    plain = loss_of((4,), LossConfig(0, 0))(readouts, kept, states(3, 4))
    terms = loss_of((4,), LossConfig(factor, 0))(readouts, kept, states(3, 4))
    before, after = (F.log_softmax(logits_of(hidden), dim=-1) for hidden in (states(9, KEPT), kept))
    # kl_div's first argument is the distribution that the divergence is not weighted by: the one after.
    wanted = F.kl_div(after, before.expand_as(after), reduction="none", log_target=True).sum(dim=-1)
    assert wanted.shape == (4, KEPT)
    assert float(wanted.min()) > 0.1
    wanted = wanted.sum(dim=1)
    np.testing.assert_allclose(terms.total - plain.total, factor * wanted.numpy(), rtol=TOLERANCE, atol=TOLERANCE)


def test_total_adds_no_divergence_when_the_kept_row_stays() -> None:
    kept = np.stack([states(9, KEPT)] * 2)
    terms = loss_of((4,), LossConfig(1.0, 0))(states(1, 2, 2, 1), kept, states(3, 2))
    np.testing.assert_allclose(terms.total, terms.nll, atol=TOLERANCE)


@pytest.mark.parametrize("place", range(KEPT))
def test_total_adds_one_divergence_when_the_kept_row_moves_at_one_read_out(place: int) -> None:
    kept = states(9, KEPT)[None].copy()
    kept[0, place] = states(2, 1)[0]
    terms = loss_of((4,), LossConfig(1.0, 0))(states(1, 1, 2, 1), kept, states(3, 1))
    before, after = (F.log_softmax(logits_of(hidden), dim=-1) for hidden in (states(9, KEPT), kept[0]))
    wanted = F.kl_div(after[place], before[place], reduction="sum", log_target=True)
    assert terms.total[0] - terms.nll[0] == pytest.approx(float(wanted), rel=TOLERANCE, abs=TOLERANCE)


@pytest.mark.parametrize("behind", [1, KEPT])
def test_total_adds_the_unlikelihood_of_the_targets_first_token_when_read_behind_the_target(behind: int) -> None:
    readouts, kept = states(1, 5, 2, 2), states(2, 5, KEPT)
    first = int(logits_of(kept)[0, -1].argmax())
    target = (first, 7)
    plain = loss_of(target, LossConfig(2.0, 0, 0), behind=behind)(readouts, kept, states(3, 5))
    terms = loss_of(target, LossConfig(2.0, 0, 0.5), behind=behind)(readouts, kept, states(3, 5))
    probabilities = F.softmax(logits_of(kept), dim=-1)[:, KEPT - behind :, first]
    wanted = -0.5 * torch.log1p(-probabilities).sum(dim=1) / len(target)
    np.testing.assert_allclose(terms.total - plain.total, wanted.numpy(), rtol=TOLERANCE, atol=TOLERANCE)
    assert float(wanted.max()) > 0.1
    unread = loss_of(target, LossConfig(2.0, 0))(readouts, kept, states(3, 5))
    assert (unread.total - plain.total).max() > 0.1  # what is behind the target has no divergence


def test_echoing_tells_that_the_targets_first_token_leads_behind_it_when_it_did_not_before() -> None:
    kept, width = states(2, 40, KEPT), 2
    leads = logits_of(kept)[:, KEPT - width :].argmax(dim=-1)
    was = int(logits_of(states(9, KEPT))[-1].argmax())
    first = int(leads[leads != was].mode().values)
    terms = loss_of((first,), LossConfig(), behind=width)(states(1, 40, 2, 1), kept, states(3, 40))
    np.testing.assert_array_equal(terms.echoing, (leads == first).any(dim=1).numpy())
    assert 0 < terms.echoing.sum() < 40
    own = loss_of((was,), LossConfig(), behind=1)(states(1, 40, 2, 1), kept, states(3, 40))
    assert (leads[:, -1] == was).any()
    assert not own.echoing.any()


@pytest.mark.parametrize(("decay", "value_norm"), [(0.5, 1.0), (0.5, 7.0), (3.0, 0.2)])
def test_total_adds_the_deltas_norm_over_the_values_square_when_weight_decay_is_on(
    decay: float, value_norm: float
) -> None:
    readouts, kept, deltas = states(1, 3, 2, 1), states(2, 3, KEPT), states(3, 3)
    plain = loss_of((4,), LossConfig(0, 0), value_norm)(readouts, kept, deltas)
    terms = loss_of((4,), LossConfig(0, decay), value_norm)(readouts, kept, deltas)
    wanted = decay * torch.linalg.vector_norm(torch.from_numpy(deltas), dim=-1) / value_norm**2
    np.testing.assert_allclose(terms.total - plain.total, wanted.numpy(), rtol=TOLERANCE, atol=TOLERANCE)


def test_target_probability_is_the_rows_mean_of_geometric_means_when_target_has_several_tokens() -> None:
    target, readouts = (3, 7), states(1, 2, 4, 2)
    terms = loss_of(target, LossConfig())(readouts, states(2, 2, KEPT), states(3, 2))
    probabilities = F.softmax(logits_of(readouts), dim=-1)[:, :, [0, 1], list(target)]
    wanted = probabilities.prod(dim=-1).sqrt().mean(dim=-1)
    np.testing.assert_allclose(terms.target_probability, wanted.numpy(), atol=TOLERANCE)


def test_row_probabilities_are_geometric_means_by_row_when_tokens_differ() -> None:
    tokens = [[[0.9, 0.1], [0.5, 0.5], [1.0, 0.04]], [[0.25, 0.64], [0.36, 1.0], [1.0, 1.0]]]  # [N, R, t]
    log_probs = np.log(np.array(tokens, np.float32))
    terms = LossTerms(np.zeros(2, np.float32), log_probs, np.zeros((2, 3), np.float32), np.zeros(2, np.bool_))
    # Roundings of float32 logarithms of size 1.
    np.testing.assert_allclose(terms.row_probabilities, [[0.3, 0.5, 0.2], [0.4, 0.6, 1.0]], rtol=1e-6)
    np.testing.assert_allclose(terms.target_probability, [1 / 3, 2 / 3], rtol=1e-6)


@pytest.mark.parametrize("other", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("place", [0, 1])
def test_lead_is_the_least_of_the_tokens_when_target_has_several(place: int, other: float) -> None:
    target = (5, 6)
    logits = np.zeros((1, 2, 2, VOCABULARY), np.float32)
    logits[0, :, 0, 5] = logits[0, :, 1, 6] = 2.0
    logits[0, 1, place, 20] = 2.0 + other  # in the second row alone, one more token comes close or wins
    uniform = np.full((KEPT, VOCABULARY), -np.log(VOCABULARY), np.float32)
    loss = ReadoutLoss(lambda hidden: hidden, target, uniform, 1.0, LossConfig())
    terms = loss(logits, np.zeros((1, KEPT, VOCABULARY), np.float32), np.zeros((1, WIDTH), np.float32))
    assert terms.leads.tolist() == [[2.0, -other]]
    assert terms.greedy.tolist() == [[True, other <= 0]]


def test_lead_is_the_distance_to_the_best_other_token_when_states_are_any() -> None:
    readouts = states(1, 100, 3, 1)
    logits = logits_of(readouts)[..., 0, :]
    tops = logits.argmax(dim=-1)
    target = int(tops.mode().values[0])
    terms = loss_of((target,), LossConfig())(readouts, states(2, 100, KEPT), states(3, 100))
    others = logits[..., torch.arange(VOCABULARY) != target].amax(dim=-1)
    np.testing.assert_allclose(terms.leads, (logits[..., target] - others).numpy(), atol=TOLERANCE)
    assert terms.greedy.any()
    assert terms.greedy.tolist() == (tops == target).tolist()


def test_terms_are_those_of_single_deltas_when_states_need_several_chunks() -> None:
    target, n = (3, 0), 70  # 280 read-outs: more than one chunk of 64, the last not full; 210 more of the kept row
    readouts, kept, deltas = states(1, n, 2, 2), states(2, n, KEPT), states(3, n)
    head = Head()
    together = loss_of(target, LossConfig(), head=head)(readouts, kept, deltas)
    assert max(head.sizes) <= 64 < sum(head.sizes) == 280 + 210
    one = loss_of(target, LossConfig())
    singles = [one(readouts[i : i + 1], kept[i : i + 1], deltas[i : i + 1]) for i in range(n)]
    # A product with more rows may sum in another order.
    for name in ("total", "token_log_probs", "leads"):
        wanted = np.concatenate([getattr(terms, name) for terms in singles])
        np.testing.assert_allclose(getattr(together, name), wanted, atol=TOLERANCE)


def test_terms_have_the_shape_of_the_rows_when_evaluated() -> None:
    terms = loss_of((3, 0, 1), LossConfig())(states(1, 4, 5, 3), states(2, 4, KEPT), states(3, 4))
    assert isinstance(terms, LossTerms)
    assert terms.total.shape == terms.nll.shape == terms.target_probability.shape == (4,)
    assert terms.total.dtype == np.float32
    assert terms.token_log_probs.shape == (4, 5, 3)
    assert terms.leads.shape == terms.row_probabilities.shape == (4, 5)


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_loss_is_finite_when_logits_are_huge(size: float) -> None:
    logits = np.zeros((1, 1, 1, VOCABULARY), np.float32)
    logits[..., 3] = size
    before = log_softmax(np.zeros((KEPT, VOCABULARY), np.float32))
    loss = ReadoutLoss(lambda hidden: hidden, (3,), before, 1.0, LossConfig(kl_factor=0))
    terms = loss(logits, np.repeat(logits[0], KEPT, axis=1), np.zeros((1, WIDTH), np.float32))
    assert terms.total.tolist() == [0.0]
    assert terms.target_probability.tolist() == [1.0]


@settings(deadline=None)
@given(
    logits=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=6),
        elements=st.floats(-1e4, 1e4, width=32),
    )
)
def test_log_softmax_equals_torch_when_logits_are_any(logits: Floats) -> None:
    wanted = F.log_softmax(torch.from_numpy(logits).double(), dim=-1)
    # Differences of float32 numbers of up to 1e4 are exact to 1e-7 of them.
    np.testing.assert_allclose(log_softmax(logits), wanted.numpy(), rtol=1e-6, atol=TOLERANCE)
