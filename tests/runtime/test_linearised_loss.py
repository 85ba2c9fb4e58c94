"""The linearised loss against torch, and the whole loss where it is exact: linear read-outs, no token dropped."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobiedit.runtime.configuration import LossConfig
from mobiedit.runtime.jacobian import Floats, Jacobian
from mobiedit.runtime.linearised_loss import LinearisedLoss
from mobiedit.runtime.readout_loss import ReadoutLoss, log_softmax
from mobiedit.runtime.top_logits import TopLogits, top_logits

ROWS, TOKENS, KEPT, HIDDEN, VOCABULARY, KNOWN = 3, 2, 5, 10, 30, 4
TARGET = np.array([3, 17])
VALUE_NORM = 2.5
CONFIG = LossConfig(kl_factor=0.5, weight_decay=0.7)
WEIGHT = np.random.default_rng(0).standard_normal((VOCABULARY, HIDDEN)).astype(np.float32)
# float32 sums of tens of terms of size 1 to 10 against float64 ones.
TOLERANCE = 1e-4


def draw(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@dataclass(frozen=True)
class Network:
    """Read-outs that are linear in delta, where the linearised loss is exact but for the tokens that it drops."""

    at: Floats
    """[D] the delta where it is expanded."""
    readouts: Floats
    kept: Floats
    before: Floats
    """[K, V] log-probabilities at the kept read-outs before the edit."""
    jacobian: Jacobian

    def states(self, deltas: Floats) -> tuple[Floats, Floats]:
        """Return the states [N, R, t, D] and [N, K, D] at deltas [N, D] that differ from ``at`` within the basis."""
        along = (deltas - self.at) @ self.jacobian.basis.T
        readouts = self.readouts + np.einsum("rtdn,kn->krtd", self.jacobian.readouts, along)
        kept = self.kept + np.einsum("rdn,kn->krd", self.jacobian.kept, along)
        return readouts.astype(np.float32), kept.astype(np.float32)

    def top(self, keep: int, weight: Floats = WEIGHT) -> tuple[TopLogits, TopLogits]:
        """Return the truncated softmaxes; ``keep`` of the whole vocabulary keeps every token."""
        wanted = np.arange(VOCABULARY) if keep >= VOCABULARY else TARGET
        readouts, kept = (
            top_logits(lambda hidden: hidden @ weight.T, states, keep, wanted)
            for states in (self.readouts.reshape(-1, HIDDEN), self.kept)
        )
        return readouts, kept

    def model(
        self,
        keep: int,
        config: LossConfig = CONFIG,
        limit: float = math.inf,
        norm_penalty: float = 0.0,
        behind: int = 0,
        weight: Floats = WEIGHT,
    ) -> LinearisedLoss:
        readouts, kept = self.top(keep, weight)
        return LinearisedLoss(
            readouts,
            kept,
            weight[readouts.ids],
            weight[kept.ids],
            self.jacobian,
            TARGET,
            self.before,
            self.at,
            VALUE_NORM,
            norm_penalty,
            limit,
            config,
            behind,
        )


def head(hidden: Floats) -> Floats:
    return hidden @ WEIGHT.T


@pytest.fixture(params=[0, 1])
def network(request: pytest.FixtureRequest) -> Network:
    seed = 100 * request.param
    jacobian = Jacobian(ROWS, TOKENS, KEPT, HIDDEN)
    basis = jacobian.complement(draw(seed, KNOWN, HIDDEN), KNOWN)
    columns, kept_columns = draw(seed + 1, KNOWN, ROWS, TOKENS, HIDDEN), draw(seed + 2, KNOWN, KEPT, HIDDEN)
    jacobian.extend(basis, columns, kept_columns, np.zeros((ROWS, KNOWN), np.bool_))
    before = log_softmax(head(draw(seed + 3, KEPT, HIDDEN)))
    readouts, kept = draw(seed + 5, ROWS, TOKENS, HIDDEN), draw(seed + 6, KEPT, HIDDEN)
    return Network(draw(seed + 4, HIDDEN), readouts, kept, before, jacobian)


def double(array: Floats) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).double()


def moved(logits: Tensor, rest: Tensor, changes: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits [..., K] and rest when the logits change: the rest by their mean, weighed by root probability."""
    return logits + changes, rest + (torch.softmax(logits / 2, dim=-1) * changes).sum(dim=-1)


def likelihood(network: Network, keep: int, c: Tensor) -> Tensor:
    """Return the truncated negative log-likelihood [R, t] in float64."""
    readouts, _ = network.top(keep)
    changes = double(WEIGHT[readouts.ids] @ network.jacobian.readouts) @ c
    before, still = double(readouts.logits).reshape(ROWS, TOKENS, -1), double(readouts.rest).reshape(ROWS, TOKENS)
    logits, rest = moved(before, still, changes)
    normaliser = torch.logaddexp(torch.logsumexp(logits, dim=-1), rest)
    wanted = torch.from_numpy(np.searchsorted(readouts.ids, TARGET))
    return normaliser - logits[:, torch.arange(TOKENS), wanted]


def divergence(network: Network, keep: int, c: Tensor) -> Tensor:
    """Return the truncated divergence of the kept row in float64: a sum, each from its own distribution before."""
    _, kept = network.top(keep)
    kl = torch.zeros((), dtype=torch.float64)
    for k, still in enumerate(double(kept.rest)):
        changes = double(WEIGHT[kept.ids] @ network.jacobian.kept[k]) @ c
        logits, rest = moved(double(kept.logits[k]), still, changes)
        normaliser = torch.logaddexp(torch.logsumexp(logits, dim=-1), rest)
        before = double(np.exp(network.before[k, kept.ids]))
        kl = kl + before @ (normaliser - logits) + (1 - before.sum()).clamp_min(0) * (normaliser - rest)
    return kl


def data_terms(network: Network, keep: int, c: Tensor, config: LossConfig = CONFIG) -> Tensor:
    """Return what the curvature is of."""
    return likelihood(network, keep, c).mean() + config.kl_factor * divergence(network, keep, c)


def dense_curvature(network: Network, keep: int, c: Floats, damping: float) -> NDArray[np.float64]:
    """Return the curvature [n, n] of the data terms and of the damping."""
    hessian = torch.autograd.functional.hessian(lambda x: data_terms(network, keep, x), double(c))
    return np.asarray(hessian.numpy() + 2 * damping / VALUE_NORM**2 * np.eye(KNOWN))


def reference(network: Network, keep: int, c: Tensor, damping: float, config: LossConfig = CONFIG) -> Tensor:
    """Return the truncated loss at coefficients in float64."""
    delta = double(network.at) + c @ double(network.jacobian.basis)
    decay = config.weight_decay * torch.linalg.vector_norm(delta)
    return data_terms(network, keep, c, config) + (decay + damping * (c @ c)) / VALUE_NORM**2


@pytest.mark.parametrize("keep", [1, 5, VOCABULARY])
@pytest.mark.parametrize("damping", [0.0, 1.0, 50.0])
def test_value_and_gradient_equal_autograds_when_tokens_are_dropped_or_not(
    keep: int, damping: float, network: Network
) -> None:
    model = network.model(keep)
    for seed in range(3):
        start = draw(seed, KNOWN) if seed else np.zeros(KNOWN, np.float32)
        c = double(start).requires_grad_()
        wanted = reference(network, keep, c, damping)
        wanted.backward()
        value, gradient = model._evaluate(start, damping)
        assert c.grad is not None
        assert value == pytest.approx(wanted.item(), rel=TOLERANCE)
        np.testing.assert_allclose(gradient, c.grad.numpy(), rtol=TOLERANCE, atol=TOLERANCE)
        assert gradient.dtype == np.float32


def wall(network: Network, c: Tensor, limit: float) -> Tensor:
    """Return what is added beyond the limit: 20 nats at twice the squared norm, and no kink at the limit."""
    delta = double(network.at) + c @ double(network.jacobian.basis)
    return 20 * (delta @ delta / limit**2 - 1).clamp_min(0) ** 2


@pytest.mark.parametrize("keep", [5, VOCABULARY])
def test_step_costs_what_is_doubted_when_columns_are_guessed(keep: int, network: Network) -> None:
    guessed = np.array([[0, 0, 1, 1], [1, 0, 0, 1], [0, 1, 1, 0]], np.bool_)
    zero, c = torch.zeros(KNOWN, dtype=torch.float64), draw(6, KNOWN)
    jacobian, model = copy(network.jacobian), network.model(keep)
    jacobian.guessed = guessed
    doubting = replace(network, jacobian=jacobian).model(keep)

    def diagonal(of: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.diagonal(torch.autograd.functional.hessian(of, zero))

    of_rows = [diagonal(lambda x, r=r: likelihood(network, keep, x)[r].sum() / (ROWS * TOKENS)) for r in range(ROWS)]
    doubt = 0.5 * sum(row.numpy() * mask for row, mask in zip(of_rows, guessed, strict=True))
    sure, unsure = model._evaluate(c, 1.0), doubting._evaluate(c, 1.0)
    assert unsure[0] - sure[0] == pytest.approx(doubt @ c**2 / 2, rel=TOLERANCE, abs=TOLERANCE)
    np.testing.assert_allclose(unsure[1] - sure[1], doubt * c, rtol=TOLERANCE, atol=TOLERANCE)
    dense = dense_curvature(network, keep, c, 1.0) + np.diag(doubt)
    step = doubting._newton_step(c, unsure[1], 1.0)
    assert np.linalg.norm(dense @ step + unsure[1]) <= TOLERANCE * np.linalg.norm(unsure[1])
    assert doubt.min() > 0.01


@pytest.mark.parametrize("relative", [0.5, 0.9, 1.1])
def test_gradient_and_step_feel_the_wall_when_delta_is_beyond_the_limit(relative: float, network: Network) -> None:
    limit = relative * float(np.linalg.norm(network.at))
    model, zero = network.model(5, limit=limit), np.zeros(KNOWN, np.float32)
    c = double(zero).requires_grad_()
    wanted = reference(network, 5, c, 1.0) + wall(network, c, limit)
    wanted.backward()
    value, gradient = model._evaluate(zero, 1.0)
    assert c.grad is not None
    assert value == pytest.approx(wanted.item(), rel=TOLERANCE)
    np.testing.assert_allclose(gradient, c.grad.numpy(), rtol=TOLERANCE, atol=TOLERANCE)

    def curved(x: Tensor) -> Tensor:
        return data_terms(network, 5, x) + wall(network, x, limit) + (x @ x) / VALUE_NORM**2

    dense = torch.autograd.functional.hessian(curved, double(zero)).numpy()
    residual = dense @ model._newton_step(zero, gradient, 1.0) + gradient
    assert np.linalg.norm(residual) <= TOLERANCE * np.linalg.norm(gradient)
    found = network.at + model.minimise(1.0, zero) @ network.jacobian.basis
    free = network.at + network.model(5).minimise(1.0, zero) @ network.jacobian.basis
    assert np.linalg.norm(found) <= np.linalg.norm(free) + 1e-3


def test_gradient_and_step_feel_the_penalty_when_length_has_one(network: Network) -> None:
    zero, penalty = np.zeros(KNOWN, np.float32), 0.8
    model = network.model(5, norm_penalty=penalty)

    def length(c: Tensor) -> Tensor:
        delta = double(network.at) + c @ double(network.jacobian.basis)
        return penalty * (delta @ delta) / VALUE_NORM**2

    c = double(zero).requires_grad_()
    wanted = reference(network, 5, c, 1.0) + length(c)
    wanted.backward()
    value, gradient = model._evaluate(zero, 1.0)
    assert c.grad is not None
    assert value == pytest.approx(wanted.item(), rel=TOLERANCE)
    np.testing.assert_allclose(gradient, c.grad.numpy(), rtol=TOLERANCE, atol=TOLERANCE)
    dense = torch.autograd.functional.hessian(
        lambda x: data_terms(network, 5, x) + length(x) + (x @ x) / VALUE_NORM**2, double(zero)
    ).numpy()
    residual = dense @ model._newton_step(zero, gradient, 1.0) + gradient
    assert np.linalg.norm(residual) <= TOLERANCE * np.linalg.norm(gradient)


@pytest.mark.parametrize("behind", [0, 1, KEPT])
@pytest.mark.parametrize(
    "config", [CONFIG, LossConfig(0, 0), LossConfig(3.0, 0, 0), LossConfig(0, 2.0), LossConfig(0, 0, 5.0)]
)
def test_value_changes_as_the_whole_loss_does_when_every_token_is_kept(
    config: LossConfig, behind: int, network: Network
) -> None:
    model = network.model(VOCABULARY, config, behind=behind)
    whole = ReadoutLoss(head, tuple(TARGET), network.before, VALUE_NORM, config, behind)
    coefficients = np.stack([np.zeros(KNOWN, np.float32), *draw(8, 4, KNOWN)])
    deltas = network.at + coefficients @ network.jacobian.basis
    wanted = whole(*network.states(deltas), deltas).total
    found = np.array([model._evaluate(c, 0)[0] for c in coefficients])
    # They differ by the entropy before the edit, a constant.
    np.testing.assert_allclose(found - found[0], wanted - wanted[0], atol=TOLERANCE)
    assert np.ptp(wanted) > 0.1


@pytest.mark.parametrize("keep", [3, 8])
def test_model_is_unmoved_when_all_rows_of_the_unembedding_share_a_direction(keep: int, network: Network) -> None:
    """What all logits rise by is nobody's gain: neither a token's that is kept nor the rest's."""
    shared = 3 * draw(9, HIDDEN)
    c = draw(8, KNOWN)
    model = network.model(keep, behind=2)
    shifted = network.model(keep, behind=2, weight=WEIGHT + shared)
    value, gradient = model._evaluate(c, 1.0)
    moved_value, moved_gradient = shifted._evaluate(c, 1.0)
    assert moved_value == pytest.approx(value, rel=TOLERANCE)
    np.testing.assert_allclose(moved_gradient, gradient, rtol=1e-3, atol=1e-3)
    # Along the shared direction logits rise by much: a rest that stays behind would be off by that.
    rise = np.einsum("d,rtdn,n->rt", shared, network.jacobian.readouts, c)
    assert np.abs(rise).min() > 1


@pytest.mark.parametrize("behind", [0, 2])
def test_gradient_is_the_whole_losss_when_every_token_is_kept(behind: int, network: Network) -> None:
    whole = ReadoutLoss(head, tuple(TARGET), network.before, VALUE_NORM, CONFIG, behind)
    length = 0.01
    sides = []
    for sign in (1, -1):
        deltas = network.at + np.float32(sign * length) * network.jacobian.basis
        sides.append(whole(*network.states(deltas), deltas).total.astype(np.float64))
    found = network.model(VOCABULARY, behind=behind)._evaluate(np.zeros(KNOWN, np.float32), 0)[1]
    # Central differences: float32 losses of size 10 over 0.02 are off by 1e-4, the third derivative by as much.
    np.testing.assert_allclose(found, (sides[0] - sides[1]) / (2 * length), atol=2e-3)


@pytest.mark.parametrize("keep", [3, VOCABULARY])
@pytest.mark.parametrize("damping", [1.0, 30.0])
@pytest.mark.parametrize("sharpness", [1, 4])  # 4: four tokens of five are too improbable for the curvature
def test_newton_step_solves_the_dense_system_when_the_curvature_is_the_data_terms(
    keep: int, damping: float, sharpness: int, network: Network
) -> None:
    c = 0.3 * draw(4, KNOWN)
    network = replace(network, readouts=sharpness * network.readouts)
    model = network.model(keep)
    gradient = model._evaluate(c, damping)[1]
    dense = dense_curvature(network, keep, c, damping)
    step = model._newton_step(c, gradient, damping)
    assert np.linalg.norm(dense @ step + gradient) <= TOLERANCE * np.linalg.norm(gradient)
    wanted = -np.linalg.solve(dense, gradient)
    np.testing.assert_allclose(step, wanted, atol=TOLERANCE * np.linalg.norm(wanted))


def test_newton_step_has_the_echos_curvature_in_its_logit_when_read_behind_the_target(network: Network) -> None:
    keep, factor, c = 5, 300.0, 0.3 * draw(4, KNOWN)
    model = network.model(keep, LossConfig(0, 0, factor), behind=KEPT)
    _, kept = network.top(keep)
    again = int(np.searchsorted(kept.ids, TARGET[0]))

    def odds(x: Tensor) -> Tensor:
        changes = double(WEIGHT[kept.ids] @ network.jacobian.kept) @ x
        logits, rest = moved(double(kept.logits), double(kept.rest), changes)
        others = torch.cat([logits[:, :again], logits[:, again + 1 :], rest[:, None]], dim=1)
        return logits[:, again] - torch.logsumexp(others, dim=1)

    slopes = torch.autograd.functional.jacobian(odds, double(c))
    weights = torch.sigmoid(odds(double(c))) * torch.sigmoid(-odds(double(c)))
    dense = torch.autograd.functional.hessian(lambda x: likelihood(network, keep, x).mean(), double(c))
    dense += factor / TOKENS * slopes.T @ (weights[:, None] * slopes)
    dense = dense.numpy() + 2 / VALUE_NORM**2 * np.eye(KNOWN)
    gradient = model._evaluate(c, 1.0)[1]
    residual = dense @ model._newton_step(c, gradient, 1.0) + gradient
    assert np.linalg.norm(residual) <= TOLERANCE * np.linalg.norm(gradient)
    assert factor * float(weights.max()) > 1


@pytest.mark.parametrize("keep", [3, VOCABULARY])
@pytest.mark.parametrize("damping", [0.3, 3.0, 100.0])
def test_minimum_is_that_of_lbfgs_when_minimised(keep: int, damping: float, network: Network) -> None:
    zero = np.zeros(KNOWN, np.float32)
    found = network.model(keep).minimise(damping, zero)
    c = torch.zeros(KNOWN, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([c], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = reference(network, keep, c, damping)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]
    start, least, reached = (
        float(reference(network, keep, x, damping)) for x in (double(zero), c.detach(), double(found))
    )
    assert found.dtype == np.float32
    # Newton's method ends once a step lowers the loss by less than a thousandth.
    assert least - 1e-5 <= reached <= least + 3e-3 * max(least, 0.05)
    assert least < start - 1e-3


def test_minimum_is_no_further_when_the_damping_is_larger(network: Network) -> None:
    model = network.model(5)
    lengths = [
        float(np.linalg.norm(model.minimise(damping, np.zeros(KNOWN, np.float32)))) for damping in (0.1, 1, 10, 100)
    ]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] < lengths[0] / 2


def test_minimum_is_the_same_when_it_starts_from_a_neighbours(network: Network) -> None:
    model, zero = network.model(5), np.zeros(KNOWN, np.float32)
    cold, warm = model.minimise(1.0, zero), model.minimise(1.0, model.minimise(3.0, zero))
    values = [model._evaluate(c, 1.0)[0] for c in (cold, warm)]
    assert values[0] == pytest.approx(values[1], rel=3e-3)  # as far as each is from the minimum


def test_minimum_is_the_start_when_it_cannot_be_lowered(network: Network) -> None:
    model = network.model(5)
    best = np.zeros(KNOWN, np.float32)
    for _ in range(20):
        best = model.minimise(1.0, best)
    value = model._evaluate(best, 1.0)[0]
    assert model._evaluate(model.minimise(1.0, best), 1.0)[0] == pytest.approx(value, abs=1e-5)


def test_loss_is_finite_when_delta_is_zero(network: Network) -> None:
    model = replace(network, at=np.zeros(HIDDEN, np.float32)).model(5)
    value, gradient = model._evaluate(np.zeros(KNOWN, np.float32), 1.0)  # the norm of delta has no derivative there
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert np.isfinite(model.minimise(1.0, np.zeros(KNOWN, np.float32))).all()
