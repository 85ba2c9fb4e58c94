"""Fit the lens: maps from what read-outs lack to the delta that supplies it, trained through the frozen suffix.

Once a model, on the host, with backpropagation. A batch of facts gets its start from the maps, then steps from the
errors that are left; each stage's loss trains the maps that made it. The gradients in delta that pass by give the
gradient subspace. This is amortised optimisation: what the device's search would find, learned in advance as far as
linear maps can carry it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

from .asides import Asides
from .fact_rows import FactRows, FactRunner
from .facts import FactSampler
from .half_precision import bfloat16_pays
from .widened import product

_RIDGE = 1e-3  # of the unembedding's mean variance
_WARM_UP, _LAST_RATE = 10, 0.1
_ROWS = 8192  # of the unembedding at a time: a copy of it all would be a gigabyte in a large model


@dataclass(frozen=True)
class LensConfig:
    """How a lens is fitted.

    Attributes
    ----------
    rows
        Facts seen in all.
    batch
        Facts a step.
    aside_share
        The last part of the batches, where asides are read as well.
    kl_factor
        Weight of the divergence there.
    learning_rate
        Adam's, at its highest; inputs have unit length and outputs are in units of the value's norm.
    steps
        Steps behind the start that are trained.
    positions
        Positions in a target that have maps of their own; the last one's serve those behind it.
    clamp
        Largest norm of delta, relative to the value's, as in the device's search.
    subspace
        Directions of the gradient subspace that are kept.
    held_out
        Facts that are only measured.
    """

    rows: int = 6000
    batch: int = 24
    aside_share: float = 0.25
    kl_factor: float = 0.5
    learning_rate: float = 2e-3
    steps: int = 2
    positions: int = 5
    clamp: float = 4.0
    subspace: int = 384
    held_out: int = 48


@dataclass(frozen=True)
class FittedLens:
    """The lens's tensors in float16 by their names in the bundle, and what the fitting showed."""

    tensors: dict[str, NDArray[np.float16]]
    evidence: dict[str, float | int | list[float]]


class LensMaps(nn.Module):
    """The trained form of the lens: on whitened inputs, where one learning rate fits all directions."""

    def __init__(self, unembedding: Tensor, positions: int) -> None:
        super().__init__()
        width = unembedding.shape[1]
        self.unembedding = unembedding
        self.centre = unembedding.mean(dim=0, dtype=torch.float32)
        covariance, norms = _moments(unembedding, self.centre)
        values, vectors = torch.linalg.eigh(covariance + _RIDGE * covariance.diagonal().mean() * torch.eye(width))
        whitening = vectors @ torch.diag(values**-0.5) @ vectors.T / width**0.5
        self.error_whitening = whitening
        self.token_whitening = whitening * norms
        self.start = nn.Parameter(torch.zeros(positions, width, width))
        self.context = nn.Parameter(torch.zeros(width, width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.step = nn.Parameter(torch.zeros(positions, width, width))

    def first_delta(self, facts: FactRows) -> Tensor:
        """Return the deltas [B, D] to start from, in units of the value's norm."""
        directions = F.normalize(self.rows(facts.targets) - self.centre, dim=-1) @ self.token_whitening
        common = self.bias + F.normalize(facts.context, dim=-1) @ self.context
        return _per_row(directions, self.start, facts, common)

    def rows(self, tokens: Tensor) -> Tensor:
        """Return the unembedding's rows [M, D] of some tokens."""
        return self.unembedding[tokens].float()

    def next_step(self, errors: Tensor, facts: FactRows) -> Tensor:
        """Return the steps [B, D] for the read-outs' errors [M, D], in units of the value's norm."""
        return _per_row(errors @ self.error_whitening, self.step, facts, torch.zeros_like(facts.context))

    def tensors(self, subspace: Tensor) -> dict[str, NDArray[np.float16]]:
        """Return the lens as the device reads it, the whitening folded into the maps."""
        parts = {
            "centre": self.centre,
            "start": self.token_whitening @ self.start,
            "context": self.context,
            "bias": self.bias,
            "step": self.error_whitening @ self.step,
            "subspace": subspace,
        }
        return {name: part.detach().numpy().astype(np.float16) for name, part in parts.items()}


def fit_lens(
    runner: FactRunner,
    unembedding: Tensor,
    sampler: FactSampler,
    config: LensConfig,
    advance: Callable[[int], None] = lambda rows: None,
) -> FittedLens:
    """Fit a lens.

    Parameters
    ----------
    unembedding
        [V, D] of the source model, in whatever precision it has.
    advance
        Told the number of rows after each batch.
    """
    began = time.perf_counter()
    maps = LensMaps(unembedding, config.positions)
    optimizer = torch.optim.Adam(maps.parameters(), lr=config.learning_rate, betas=(0.9, 0.98))
    width = unembedding.shape[1]
    gradients = torch.zeros(width, width)
    head = _Head.of(unembedding)
    unseen = sampler.rows(config.held_out)
    held_out, held_asides = runner.run(unseen), Asides.run(runner, unseen, head.log_probs)
    before = _held_out(maps, head, held_out, held_asides, config)[0]  # the maps are zero, and so is delta
    batches = max(1, config.rows // config.batch)
    for index in range(batches):
        rate = config.learning_rate * min(1, (index + 1) / _WARM_UP) * (1 - (1 - _LAST_RATE) * index / batches)
        optimizer.param_groups[0]["lr"] = rate
        rows = sampler.rows(config.batch)
        facts = runner.run(rows)
        late = index >= (1 - config.aside_share) * batches
        asides = Asides.run(runner, rows, head.log_probs) if late else None
        optimizer.zero_grad()
        for losses, delta in _stages(maps, head, facts, config):
            loss = losses.mean()
            if asides:
                loss = loss + config.kl_factor * asides.divergence(delta).mean()
            loss.backward()
            directions = F.normalize(delta.grad, dim=-1)
            gradients += directions.T @ directions
        optimizer.step()
        advance(len(facts.lengths))
    _, vectors = torch.linalg.eigh(gradients)
    subspace = vectors.flip(1).T[: config.subspace]
    after = _held_out(maps, head, held_out, held_asides, config)
    evidence = {
        "rows": batches * config.batch,
        "seconds": round(time.perf_counter() - began, 1),
        "held_out_nll": [round(loss, 3) for loss, _ in (before, *after)],
        "held_out_divergence": [round(divergence, 3) for _, divergence in (before, *after)],
    }
    return FittedLens(maps.tensors(subspace.contiguous()), evidence)


def lens_numbers(width: int, config: LensConfig) -> int:
    """Return how many numbers a lens has."""
    return (2 * config.positions + 1) * width**2 + (2 + min(config.subspace, width)) * width


def _stages(maps: LensMaps, head: _Head, facts: FactRows, config: LensConfig) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield losses [B] and deltas [B, D] of the start, then of each step; no gradient passes from one to the next."""
    delta = _clamped(maps.first_delta(facts), facts, config.clamp)
    for stage in range(config.steps + 1):
        if delta.requires_grad:
            delta.retain_grad()
        log_probs = head.log_probs(facts, delta)
        chosen = log_probs.gather(-1, facts.targets[:, None])[:, 0]
        yield facts.means(-chosen), delta
        if stage < config.steps:
            with torch.no_grad():
                errors = maps.rows(facts.targets) - head.expected_row(log_probs.exp())
            relative = delta.detach() / facts.value_norms[:, None] + maps.next_step(errors, facts)
            delta = _clamped(relative, facts, config.clamp)


@torch.no_grad()
def _held_out(
    maps: LensMaps, head: _Head, facts: FactRows, asides: Asides | None, config: LensConfig
) -> list[tuple[float, float]]:
    """Return the target's mean NLL and the divergence at the asides, at the start and after each step."""
    return [
        (float(losses.mean()), float(asides.divergence(delta).mean()) if asides else 0.0)
        for losses, delta in _stages(maps, head, facts, config)
    ]


@dataclass(frozen=True)
class _Head:
    """The vocabulary projection, in bfloat16 where that pays: ``half`` says that the layers shall be too."""

    rows: Tensor
    half: bool

    @staticmethod
    def of(unembedding: Tensor) -> _Head:
        half = bfloat16_pays()
        return _Head(unembedding.bfloat16() if half else unembedding, half)

    def log_probs(self, facts: FactRows, delta: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.half):
            hidden = facts.differentiable.readouts(delta)
        return F.log_softmax(product(self._own(hidden), self.rows).float(), dim=-1)

    def expected_row(self, probabilities: Tensor) -> Tensor:
        return product(self._own(probabilities), self.rows.T).float()

    def _own(self, x: Tensor) -> Tensor:
        return x.bfloat16() if self.half else x.float()


def _moments(unembedding: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Return the covariance [D, D] of the unembedding's rows and their mean distance to the centre."""
    covariance, distance = torch.zeros(2 * [len(centre)]), torch.zeros(())
    for rows in unembedding.split(_ROWS):
        away = rows.float() - centre
        covariance.addmm_(away.T, away)
        distance += away.norm(dim=1).sum()
    return covariance / len(unembedding), distance / len(unembedding)


def _per_row(inputs: Tensor, maps: Tensor, facts: FactRows, out: Tensor) -> Tensor:
    """Add each read-out's mapped input [M, D] to its row of ``out`` [B, D]."""
    positions = facts.positions.clamp(max=len(maps) - 1)
    out = out.expand(len(facts.lengths), -1)
    for position in range(len(maps)):
        chosen = positions == position
        out = out.index_add(0, facts.owners[chosen], inputs[chosen] @ maps[position])
    return out


def _clamped(relative: Tensor, facts: FactRows, clamp: float) -> Tensor:
    """Return deltas [B, D] from ones in units of the value's norm, none longer than ``clamp``."""
    norms = relative.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return relative * torch.clamp(clamp / norms, max=1) * facts.value_norms[:, None]
