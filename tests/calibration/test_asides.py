"""Asides: what a delta does where its subject is asked for something else, against a dense reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mobiedit.calibration.asides import Asides
from mobiedit.calibration.fact_rows import FactRows, FactRunner
from mobiedit.calibration.facts import FactRow, FactSampler


@pytest.fixture
def facts(sampler: FactSampler) -> list[FactRow]:
    """Some with an aside, some without."""
    drawn = sampler.rows(12)
    assert 2 < sum(fact.aside is not None for fact in drawn) < 12
    return drawn


@pytest.fixture
def unembedding(model: nn.Module) -> Tensor:
    rows: Tensor = model.lm_head.weight.detach()
    return rows


@pytest.fixture
def asides(runner: FactRunner, facts: list[FactRow], unembedding: Tensor) -> Asides:
    def log_probs(rows: FactRows, deltas: Tensor) -> Tensor:
        return functional.log_softmax(rows.differentiable.readouts(deltas) @ unembedding.T, dim=-1)

    found = Asides.run(runner, facts, log_probs)
    assert found is not None
    return found


def deltas(count: int) -> Tensor:
    return 2 * torch.randn(count, 64, generator=torch.Generator().manual_seed(0))


def test_divergence_is_torchs_when_a_delta_is_in_place(
    asides: Asides, runner: FactRunner, facts: list[FactRow], unembedding: Tensor
) -> None:
    """Each aside by itself, with the delta of the fact whose subject it has."""
    edits = deltas(len(facts))
    owned = [(i, fact.aside) for i, fact in enumerate(facts) if fact.aside is not None]
    found = asides.divergence(edits)
    assert len(found) == len(owned)
    for divergence, (owner, aside) in zip(found, owned, strict=True):
        alone = runner.run([aside])
        before, now = (
            functional.log_softmax(alone.differentiable.readouts(delta[None]) @ unembedding.T, dim=-1)
            for delta in (torch.zeros(64), edits[owner])
        )
        wanted = functional.kl_div(now, before, log_target=True, reduction="batchmean")
        # Rows of one batch and rows alone differ by the rounding of float32 sums over some layers.
        torch.testing.assert_close(divergence, wanted, atol=1e-4, rtol=1e-3)
    assert float(found.mean()) > 0.01


def test_divergence_is_zero_when_delta_is(asides: Asides, facts: list[FactRow]) -> None:
    assert float(asides.divergence(torch.zeros(len(facts), 64)).abs().max()) < 1e-5


def test_gradient_reaches_deltas_that_have_an_aside_alone_when_backpropagated(
    asides: Asides, facts: list[FactRow]
) -> None:
    edits = deltas(len(facts)).requires_grad_()
    asides.divergence(edits).sum().backward()
    assert edits.grad is not None
    moved = edits.grad.abs().sum(dim=-1) > 0
    assert moved.tolist() == [fact.aside is not None for fact in facts]


def test_there_are_none_when_no_fact_has_one(runner: FactRunner, facts: list[FactRow]) -> None:
    bare = [replace(fact, aside=None) for fact in facts]
    assert Asides.run(runner, bare, lambda rows, _: torch.zeros(len(rows.targets), 3)) is None
