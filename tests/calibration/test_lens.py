"""The fitting of the lens: its arithmetic is the device's, its loss falls, and a seed decides it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mobiedit.calibration import lens as fitting
from mobiedit.calibration.fact_rows import FactRows, FactRunner
from mobiedit.calibration.facts import FactMix, FactSampler, own_relations
from mobiedit.calibration.lens import FittedLens, LensConfig, LensMaps, fit_lens, lens_numbers
from mobiedit.runtime.lens import Lens
from mobiedit.runtime.tokenizer import Tokenizer

QUICK = LensConfig(rows=96, batch=12, held_out=12, subspace=20)
# Float16 keeps 11 bits: the sum of D products, each off by a relative 2^-11 at most, is off by 5e-4 of the terms' norm.
HALF = 1e-3


@pytest.fixture(autouse=True)
def single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit in float32 whatever this processor is fast at: the clock decides otherwise."""
    monkeypatch.setattr(fitting, "bfloat16_pays", lambda: False)


@pytest.fixture(scope="module")
def unembedding(model: nn.Module) -> Tensor:
    rows: Tensor = model.lm_head.weight.detach().clone()
    return rows


@pytest.fixture
def fit(runner: FactRunner, unembedding: Tensor, byte_tokenizer: Tokenizer) -> Callable[..., FittedLens]:
    """Return a function that fits on a few facts of a seed."""

    def run(
        config: LensConfig = QUICK, seed: int = 0, advance: Callable[[int], None] = lambda rows: None
    ) -> FittedLens:
        mix = FactMix(plain=0, borrowed=0, prefixed=0)
        sampler = FactSampler(byte_tokenizer, own_relations(), [], ("{}",), mix, seed)
        return fit_lens(runner, unembedding, sampler, config, advance)

    return run


@pytest.fixture
def facts(runner: FactRunner, sampler: FactSampler) -> FactRows:
    rows = runner.run(sampler.rows(10))
    assert int(rows.lengths.max()) > 3  # longer than there are maps
    return rows


@pytest.fixture
def maps(unembedding: Tensor) -> LensMaps:
    """Maps as large as trained ones, for two positions and all behind them."""
    maps = LensMaps(unembedding, 3)
    generator = torch.Generator().manual_seed(0)
    for parameter in maps.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return maps.requires_grad_(False)


@pytest.fixture
def device(maps: LensMaps) -> Lens:
    """The same lens as the device reads it."""
    return Lens(**maps.tensors(torch.eye(64)[:5]))


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    """Compare vectors by their length, since an error of a large component shows in a small one."""
    assert np.linalg.norm(found - wanted) <= HALF * np.linalg.norm(wanted)


def test_first_delta_is_the_devices_when_the_whitening_is_folded_in(
    maps: LensMaps, device: Lens, facts: FactRows, unembedding: Tensor
) -> None:
    trained = maps.first_delta(facts).numpy()
    for b in range(len(facts.lengths)):
        targets = unembedding[facts.targets[facts.owners == b]].numpy()
        close(device.first_delta(targets, facts.context[b : b + 1].numpy()), trained[b])


def test_images_add_up_to_the_step_when_the_whitening_is_folded_in(
    maps: LensMaps, device: Lens, facts: FactRows
) -> None:
    errors = torch.randn(len(facts.targets), 64, generator=torch.Generator().manual_seed(1))
    trained = maps.next_step(errors, facts).numpy()
    for b in range(len(facts.lengths)):
        close(device.images(errors[facts.owners == b].numpy()).sum(axis=0), trained[b])


def test_whitened_rows_have_unit_covariance_when_the_unembedding_is_any(unembedding: Tensor) -> None:
    skewed = unembedding * torch.linspace(0.2, 5, 64)
    maps = LensMaps(skewed, 1)
    white = (skewed - maps.centre) @ maps.error_whitening
    covariance = white.T @ white / len(white) * 64
    # The ridge shrinks the smallest directions, whose variance is a hundredth of the mean, by a tenth.
    torch.testing.assert_close(covariance, torch.eye(64), atol=0.25, rtol=0)
    assert float(covariance.diagonal().mean()) == pytest.approx(1, abs=0.05)


def test_first_delta_is_zero_when_untrained(unembedding: Tensor, facts: FactRows) -> None:
    assert not LensMaps(unembedding, 3).first_delta(facts).any()


def test_loss_falls_when_fitted(runner: FactRunner, unembedding: Tensor, byte_tokenizer: Tokenizer) -> None:
    """Facts of untrained weights have nothing in common, so that it is measured on what it learned."""
    draw, rng = own_relations(), random.Random(0)
    known = [draw(rng) for _ in range(12)]
    sampler = FactSampler(byte_tokenizer, lambda chosen: chosen.choice(known), [], ("{}",), FactMix(0, 0, 0), 0)
    config = replace(QUICK, rows=480, learning_rate=5e-3, kl_factor=0)
    fitted = fit_lens(runner, unembedding, sampler, config)
    before, *after = fitted.evidence["held_out_nll"]
    assert len(after) == QUICK.steps + 1
    assert after[0] < before - 0.8
    assert after == sorted(after, reverse=True)  # each step is better than the one before
    assert after[-1] < after[0] - 0.1


def test_divergence_elsewhere_is_less_when_it_is_paid_for(
    runner: FactRunner, unembedding: Tensor, byte_tokenizer: Tokenizer
) -> None:
    """What it is for: a lens that knows other questions of a subject leaves them alone."""
    draw, rng = own_relations(), random.Random(1)
    known = [fact for fact in (draw(rng) for _ in range(20)) if fact.aside][:8]

    def fitted(kl_factor: float) -> dict[str, float | int | list[float]]:
        sampler = FactSampler(byte_tokenizer, lambda chosen: chosen.choice(known), [], ("{}",), FactMix(0, 0, 0), 0)
        config = replace(QUICK, rows=480, learning_rate=5e-3, aside_share=0.5, kl_factor=kl_factor)
        return fit_lens(runner, unembedding, sampler, config).evidence

    free, paid = fitted(0), fitted(3)
    assert free["held_out_divergence"][0] == paid["held_out_divergence"][0] == 0
    for without, with_it in zip(free["held_out_divergence"][1:], paid["held_out_divergence"][1:], strict=True):
        assert with_it < 0.7 * without
    assert paid["held_out_nll"][-1] < paid["held_out_nll"][0] - 0.3  # and it still teaches


def test_evidence_is_of_no_delta_when_nothing_is_learned(fit: Callable[..., FittedLens]) -> None:
    evidence = fit(replace(QUICK, learning_rate=0.0, rows=12)).evidence
    before, *after = evidence["held_out_nll"]
    assert after == [before] * 3
    assert not any(evidence["held_out_divergence"])


def test_lens_is_the_same_when_the_seed_is(fit: Callable[..., FittedLens]) -> None:
    one, two, other = (fit(seed=seed).tensors for seed in (0, 0, 1))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    assert (one["start"] != other["start"]).any()


def test_tensors_have_the_counted_numbers_when_fitted(fit: Callable[..., FittedLens]) -> None:
    for config in (replace(QUICK, rows=12), replace(QUICK, rows=12, subspace=500, positions=2)):
        fitted = fit(config)
        assert sum(tensor.size for tensor in fitted.tensors.values()) == lens_numbers(64, config)
        assert {tensor.dtype for tensor in fitted.tensors.values()} == {np.dtype(np.float16)}
        assert all(np.isfinite(tensor).all() for tensor in fitted.tensors.values())


def test_progress_is_told_for_each_batch_when_fitted(fit: Callable[..., FittedLens]) -> None:
    told: list[int] = []
    fitted = fit(replace(QUICK, rows=30), advance=told.append)
    assert told == [12, 12]
    assert fitted.evidence["rows"] == 24


def test_one_batch_is_seen_when_fewer_rows_are_asked_for(fit: Callable[..., FittedLens]) -> None:
    assert fit(replace(QUICK, rows=1)).evidence["rows"] == 12


def test_subspace_is_orthonormal_and_the_strongest_direction_is_first(
    fit: Callable[..., FittedLens], runner: FactRunner, byte_tokenizer: Tokenizer, unembedding: Tensor
) -> None:
    subspace = fit(replace(QUICK, rows=480, kl_factor=0)).tensors["subspace"].astype(np.float64)
    np.testing.assert_allclose(subspace @ subspace.T, np.eye(20), atol=5 * HALF)
    mix = FactMix(plain=0, borrowed=0, prefixed=0)
    facts = runner.run(FactSampler(byte_tokenizer, own_relations(), [], ("{}",), mix, 5).rows(60))
    delta = torch.zeros(60, 64, requires_grad=True)
    logits = facts.differentiable.readouts(delta) @ unembedding.T
    nn.functional.cross_entropy(logits, facts.targets, reduction="sum").backward()
    assert delta.grad is not None
    shares = ((nn.functional.normalize(delta.grad, dim=-1).double().numpy() @ subspace.T) ** 2).sum(axis=0)
    assert shares[:5].sum() > 1.5 * shares[-5:].sum()
    # Twenty random directions of 64 would hold 0.31 of the squared length.
    assert shares.sum() / 60 > 0.4


@pytest.mark.parametrize("clamp", [0.1, 0.5])
def test_start_is_clamped_when_maps_ask_for_more(
    clamp: float, maps: LensMaps, facts: FactRows, unembedding: Tensor
) -> None:
    maps.bias.data += 10
    stages = fitting._stages(maps, fitting._Head.of(unembedding), facts, LensConfig(clamp=clamp))
    for _, delta in stages:
        torch.testing.assert_close(delta.norm(dim=-1), clamp * facts.value_norms, rtol=1e-5, atol=0)


def test_gradient_reaches_the_maps_of_its_stage_alone_when_backpropagated(unembedding: Tensor, facts: FactRows) -> None:
    maps = LensMaps(unembedding, 3)
    for stage, (loss, _) in enumerate(fitting._stages(maps, fitting._Head.of(unembedding), facts, LensConfig())):
        maps.zero_grad()
        loss.mean().backward()
        moved = {name for name, p in maps.named_parameters() if p.grad is not None and p.grad.any()}
        assert moved == ({"start", "context", "bias"} if stage == 0 else {"step"})


def test_errors_are_the_gradient_of_the_targets_log_probability_when_a_step_is_asked_for(
    maps: LensMaps, facts: FactRows, unembedding: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the device defines them: a map fitted on their negative would send it the wrong way."""
    asked: list[Tensor] = []
    step = maps.next_step
    monkeypatch.setattr(maps, "next_step", lambda errors, rows: asked.append(errors) or step(errors, rows))
    deltas = [delta for _, delta in fitting._stages(maps, fitting._Head.of(unembedding), facts, LensConfig())]
    for delta, errors in zip(deltas, asked, strict=False):
        hidden = facts.differentiable.readouts(delta).detach().requires_grad_()
        chosen = torch.log_softmax(hidden @ unembedding.T, dim=-1).gather(-1, facts.targets[:, None])
        chosen.sum().backward()
        torch.testing.assert_close(errors, hidden.grad, atol=1e-4, rtol=1e-4)  # sums of 600 float32 products
    assert len(asked) == LensConfig().steps


def test_losses_are_the_rows_mean_nll_when_targets_differ_in_length(
    maps: LensMaps, facts: FactRows, unembedding: Tensor
) -> None:
    losses, delta = next(iter(fitting._stages(maps, fitting._Head.of(unembedding), facts, LensConfig())))
    nll = nn.functional.cross_entropy(
        facts.differentiable.readouts(delta) @ unembedding.T, facts.targets, reduction="none"
    )
    wanted = [float(nll[facts.owners == b].mean()) for b in range(len(facts.lengths))]
    np.testing.assert_allclose(losses.numpy(), wanted, rtol=1e-5)


def test_loss_falls_when_fitted_in_half_precision(
    fit: Callable[..., FittedLens], monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = fit().evidence["held_out_nll"]
    monkeypatch.setattr(fitting, "bfloat16_pays", lambda: True)
    half = fit().evidence["held_out_nll"]
    # Bfloat16 keeps 8 bits of logits of size 10.
    np.testing.assert_allclose(half, exact, atol=0.15)
