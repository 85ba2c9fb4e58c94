"""Searches by backpropagation of several facts at once: each as `backprop` runs it alone, the weights read once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from mobiedit.calibration.differentiable_rows import DifferentiableRows
from mobiedit.runtime.configuration import LossConfig
from mobiedit.runtime.decoder import LayerCache
from mobiedit.runtime.search import SearchTask

from .backprop import BackpropConfig
from .host_model import HostModel
from .host_problem import HostProblem

Floats = NDArray[np.float32]


def backprop_batch(
    tasks: Sequence[SearchTask], host: HostModel, config: BackpropConfig, loss: LossConfig
) -> list[Floats]:
    """Return the delta [D] that Adam finds for each task; nothing is counted into a meter."""
    problems = [HostProblem(task, host, loss, whole=False) for task in tasks]
    limits = torch.tensor([config.clamp * task.value_norm for task in tasks])
    owners = torch.tensor([n for n, task in enumerate(tasks) for _ in task.problem.rows.all])
    readouts = [sum(map(len, task.problem.rows.places)) for task in tasks]
    rows = _joined(tasks, host)
    deltas = torch.zeros(len(tasks), len(tasks[0].value), requires_grad=True)
    adam = torch.optim.Adam([deltas], lr=config.learning_rate)
    going = torch.ones(len(tasks), dtype=torch.bool)
    for step in range(config.steps + 1):
        parts = rows.readouts(deltas[owners]).split(readouts)
        losses = torch.stack([p.terms(part, d).total for p, part, d in zip(problems, parts, deltas, strict=True)])
        going &= losses.detach() >= config.stop_loss
        if step == config.steps or not going.any():
            break
        adam.zero_grad()
        losses.sum().backward()
        former = deltas.detach().clone()
        adam.step()
        with torch.no_grad():
            deltas *= (limits / deltas.norm(dim=1)).clamp(max=1)[:, None]
            deltas[~going] = former[~going]
    return list(deltas.detach().numpy().copy())


def _joined(tasks: Sequence[SearchTask], host: HostModel) -> DifferentiableRows:
    """Return the rows of all tasks as one batch, padded behind the tokens and behind what is in front of them."""
    problems = [task.problem for task in tasks]
    windows = [problem.window for problem in problems]
    tokens = max(window.hidden.shape[1] for window in windows)
    past = max(window.cache.past for window in windows)
    layers = zip(*(window.cache.tensors for window in windows), strict=True)
    cache = LayerCache(
        tuple(np.concatenate([_padded(each, past, axis=2) for each in layer]) for layer in layers),
        np.concatenate([window.cache.lengths for window in windows]),
    )
    columns = [
        [token - start for token in places]
        for problem, window in zip(problems, windows, strict=True)
        for places, start in zip(problem.rows.places, window.starts, strict=True)
    ]
    hidden = np.concatenate([_padded(window.hidden, tokens, axis=1) for window in windows])
    scales = np.concatenate([_padded(window.scales, tokens, axis=1) for window in windows])
    return DifferentiableRows.prepare(host.suffix, host.decoder, hidden, scales, cache, columns)


def _padded(array: Floats, length: int, axis: int) -> Floats:
    """Return an array with zeros behind an axis's end, up to a length."""
    widths = [(0, length - array.shape[axis] if n == axis else 0) for n in range(array.ndim)]
    return np.pad(array, widths)
