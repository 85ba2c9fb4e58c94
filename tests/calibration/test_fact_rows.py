"""Batches of facts against the whole rows, run one by one without a cache through the real model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mobiedit.calibration.fact_rows import FactRows, FactRunner
from mobiedit.calibration.facts import FactRow, FactSampler
from mobiedit.runtime.manifest import read_manifest

# Normalised states are of size 1; float32 sums in another order differ by about 1e-5.
TOLERANCE = 1e-4
COUNT = 12


@pytest.fixture
def facts(sampler: FactSampler) -> list[FactRow]:
    drawn = sampler.rows(COUNT)
    assert len({len(fact.prompt) for fact in drawn}) > 3
    assert len({len(fact.target) for fact in drawn}) > 2
    return [*drawn, FactRow((70, 71), 0, (80,)), FactRow((90,), 0, (81, 82))]  # a subject that opens its prompt


@pytest.fixture
def rows(facts: list[FactRow], runner: FactRunner) -> FactRows:
    return runner.run(facts)


class Whole:
    """A fact in the real model, all of it computed, its down projection changed from the subject on."""

    def __init__(self, model: nn.Module, fact: FactRow, layer: int, sink: int, runner: FactRunner) -> None:
        self.ids = torch.tensor([[sink, *fact.prompt, *fact.target[:-1]]])
        self.subject = 1 + fact.subject
        self.model, self.block = model, model.model.layers[layer]
        key = self._run(None)[0][self.subject].double().numpy()
        solved = runner.inverse_covariance.astype(np.float64) @ key
        self.direction = torch.from_numpy((solved / (key @ solved)).astype(np.float32))

    def _run(self, delta: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return keys, values, the residual stream behind the layer, and final states, [T, ...] each."""
        seen: dict[str, Tensor] = {}

        def change(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            seen["keys"], seen["values"] = inputs[0][0], output[0]
            if delta is None:
                return output
            scales = inputs[0][0] @ self.direction
            scales[: self.subject] = 0
            return output + (scales[:, None] * delta)[None]

        def note(_: nn.Module, __: object, output: Tensor) -> None:
            seen["hidden"] = output[0]

        handles = [self.block.mlp.down_proj.register_forward_hook(change), self.block.register_forward_hook(note)]
        try:
            with torch.no_grad():
                final = self.model.model(self.ids).last_hidden_state[0]
        finally:
            for handle in handles:
                handle.remove()
        return seen["keys"], seen["values"], seen["hidden"], final

    def before(self) -> tuple[float, Tensor]:
        """Return the norm of the subject's value, and the residual stream behind the layer there."""
        _, values, hidden, _ = self._run(None)
        return float(values[self.subject].norm()), hidden[self.subject]

    def readouts(self, delta: Tensor, tokens: int) -> Tensor:
        """Return the final states of the last ``tokens`` places."""
        return self._run(delta)[3][-tokens:]


@pytest.fixture
def whole(facts: list[FactRow], model: nn.Module, runner: FactRunner, fp32_bundle: Path) -> list[Whole]:
    manifest = read_manifest(fp32_bundle)
    return [Whole(model, fact, manifest.edit_layer, manifest.sink_token, runner) for fact in facts]


@pytest.mark.parametrize("size", [0.0, 3.0])
def test_readouts_are_the_whole_rows_when_each_has_its_delta(
    size: float, facts: list[FactRow], rows: FactRows, whole: list[Whole]
) -> None:
    deltas = size * torch.randn(len(facts), 64, generator=torch.Generator().manual_seed(0))
    found = rows.differentiable.readouts(deltas)
    wanted = [each.readouts(delta, len(f.target)) for each, delta, f in zip(whole, deltas, facts, strict=True)]
    torch.testing.assert_close(found, torch.cat(wanted), atol=TOLERANCE, rtol=0)


def test_value_norms_and_context_are_the_whole_rows_when_run(rows: FactRows, whole: list[Whole]) -> None:
    norms, context = zip(*(each.before() for each in whole), strict=True)
    torch.testing.assert_close(rows.value_norms, torch.tensor(norms), atol=TOLERANCE, rtol=TOLERANCE)
    torch.testing.assert_close(rows.context, torch.stack(context), atol=TOLERANCE, rtol=TOLERANCE)


def test_readouts_are_told_by_row_and_position_when_targets_differ_in_length(
    facts: list[FactRow], rows: FactRows
) -> None:
    assert rows.targets.tolist() == [token for fact in facts for token in fact.target]
    assert rows.positions.tolist() == [i for fact in facts for i in range(len(fact.target))]
    assert rows.lengths.tolist() == [len(fact.target) for fact in facts]
    assert rows.owners.tolist() == [b for b, fact in enumerate(facts) for _ in fact.target]


def test_facts_are_the_same_alone_when_run_in_a_batch(facts: list[FactRow], rows: FactRows, runner: FactRunner) -> None:
    """Padding of a batch changes nothing."""
    deltas = torch.randn(len(facts), 64, generator=torch.Generator().manual_seed(1))
    together = rows.differentiable.readouts(deltas)
    for b, fact in enumerate(facts):
        alone = runner.run([fact])
        found = alone.differentiable.readouts(deltas[b : b + 1])
        torch.testing.assert_close(found, together[rows.owners == b], atol=TOLERANCE, rtol=0)
