"""Rows in torch against the device's forwards: the same read-outs, and their gradient in delta."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mobiedit.calibration.differentiable_rows import DifferentiableRows
from mobiedit.calibration.fact_rows import FactRunner
from mobiedit.runtime.costs import CostMeter
from mobiedit.runtime.edit_problem import EditProblem, Floats, prefill
from mobiedit.runtime.manifest import Manifest, read_manifest
from mobiedit.runtime.prompt_rows import EditRequest, build_rows
from mobiedit.runtime.rank_one import rank_one_direction
from mobiedit.runtime.tokenizer import Tokenizer

# Normalised states are of size 1; float32 sums in another order differ by about 1e-5.
TOLERANCE = 1e-4
REQUESTS = {
    "subject-inside": EditRequest("The mother tongue of {} is", "Anna Miller", "English"),
    "subject-at-the-end": EditRequest("The book was written by the man from {}", "Paris", "in French"),
}


@pytest.fixture(scope="module")
def manifest(fp32_bundle: Path) -> Manifest:
    return read_manifest(fp32_bundle)


@pytest.fixture(params=REQUESTS)
def problem(
    request: pytest.FixtureRequest, runner: FactRunner, manifest: Manifest, byte_tokenizer: Tokenizer
) -> EditProblem:
    rows = build_rows(REQUESTS[request.param], manifest.row_prefixes, byte_tokenizer, 32)
    filled = prefill(runner.decoder, rows, runner.slots)
    direction = rank_one_direction(filled.subject_key(rows), runner.inverse_covariance)
    return EditProblem(runner.decoder, rows, filled, direction, runner.slots, CostMeter())


@pytest.fixture
def rows(problem: EditProblem, suffix: nn.Module, runner: FactRunner) -> DifferentiableRows:
    window, rewriting = problem.window, problem.rows.rewriting
    readouts = [np.array(row.readouts) - start for row, start in zip(problem.rows.all, window.starts, strict=True)]
    prepared = DifferentiableRows.prepare(
        suffix, runner.decoder, window.hidden, window.scales, window.cache, [r.tolist() for r in readouts]
    )
    assert len(rewriting) == 6
    return prepared


def of_all(rows: DifferentiableRows, delta: torch.Tensor) -> torch.Tensor:
    """Return the read-outs [M, D] with one delta [D] in every row."""
    return rows.readouts(delta.expand(len(rows.hidden), -1))


def runtime_readouts(problem: EditProblem, deltas: Floats) -> Floats:
    """Return [N, M, D] the same read-outs of the device."""
    readouts, kept = problem.readouts(deltas)
    return np.concatenate([readouts.reshape(len(deltas), -1, readouts.shape[-1]), kept], axis=1)


def draw(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("size", [0.0, 1.0, 5.0])
def test_readouts_are_the_devices_when_one_delta_is_in_every_row(
    size: float, problem: EditProblem, rows: DifferentiableRows, manifest: Manifest
) -> None:
    delta = np.float32(size) * draw(0, manifest.shape.width)
    found = of_all(rows, torch.from_numpy(delta)).numpy()
    np.testing.assert_allclose(found, runtime_readouts(problem, delta[None])[0], atol=TOLERANCE)


def test_gradient_is_that_of_central_differences_when_the_device_runs_them(
    problem: EditProblem, rows: DifferentiableRows, manifest: Manifest
) -> None:
    width, length = manifest.shape.width, 0.02
    delta, weights = draw(1, width), draw(2, len(rows.rows), width)
    leaf = torch.from_numpy(delta).requires_grad_()
    (torch.from_numpy(weights) * of_all(rows, leaf)).sum().backward()
    assert leaf.grad is not None
    units = np.linalg.qr(draw(3, width, 6).astype(np.float64))[0].T.astype(np.float32)
    sides = [runtime_readouts(problem, delta + np.float32(sign * length) * units) for sign in (1, -1)]
    differences = np.einsum("nmd,md->n", (sides[0] - sides[1]).astype(np.float64), weights) / (2 * length)
    gradient = leaf.grad.numpy() @ units.T
    # Sums of 400 read-outs that are right to 1e-6, over 0.04: 1e-3; the third derivative is as small.
    np.testing.assert_allclose(differences, gradient, atol=1e-2 * float(np.abs(gradient).max()))


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_gradient_is_zero_where_a_row_has_none_of_delta(
    scale: float, rows: DifferentiableRows, manifest: Manifest
) -> None:
    leaf = torch.zeros(len(rows.hidden), manifest.shape.width, requires_grad=True)
    chosen = rows.rows == 2
    (scale * rows.readouts(leaf)[chosen]).square().sum().backward()
    assert leaf.grad is not None
    moved = leaf.grad.abs().amax(dim=-1) > 0
    assert moved.tolist() == [scale > 0 and b == 2 for b in range(len(rows.hidden))]


def test_rows_have_deltas_of_their_own_when_they_differ(
    problem: EditProblem, rows: DifferentiableRows, manifest: Manifest
) -> None:
    deltas = draw(4, len(rows.hidden), manifest.shape.width)
    found = rows.readouts(torch.from_numpy(deltas)).numpy()
    wanted = runtime_readouts(problem, deltas)
    for m, b in enumerate(rows.rows.tolist()):
        np.testing.assert_allclose(found[m], wanted[b, m], atol=TOLERANCE)
