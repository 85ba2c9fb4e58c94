"""The forward-only search of delta: central differences along random directions, and Adam.

The estimator is MobiEdit's (arXiv 2506.13772): (L(v + mu u) - L(v - mu u)) / 2 mu over N directions. Three things
differ from the published code: the directions of a step are orthonormal, Adam's second moment is one number for the
whole vector (a component's own is mostly the noise of the estimate), and all lengths are relative to the norm of the
value, since those that fit one model leave another where it was.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .configuration import ZerothOrderConfig
from .search import Look, Progress, SearchResult, SearchTask, within

Floats = NDArray[np.float32]


class _SharedAdam:
    """Adam (Kingma and Ba 2015) with one second moment for all components.

    A step is ``rate`` long where the gradient is steady.
    """

    def __init__(self, width: int, config: ZerothOrderConfig) -> None:
        self._first = np.zeros(width, np.float32)
        self._second = 0.0
        self._betas = (config.momentum, config.second_moment)
        self._t = 0

    def step(self, gradient: Floats, rate: float) -> Floats:
        self._t += 1
        b1, b2 = self._betas
        self._first = b1 * self._first + (1 - b1) * gradient
        self._second = b2 * self._second + (1 - b2) * float(gradient @ gradient)
        mean, square = self._first / (1 - b1**self._t), self._second / (1 - b2**self._t)
        return np.asarray(-rate * mean / (math.sqrt(square) + 1e-12))


def zeroth_order(task: SearchTask, config: ZerothOrderConfig) -> SearchResult:
    """Search for the delta that makes the target likely.

    A step costs two forwards a direction, a look one.
    """
    value_norm, width = task.value_norm, len(task.value)
    rng = np.random.default_rng(config.seed)
    adam = _SharedAdam(width, config)
    mu = config.mu * value_norm
    delta = np.zeros(width, np.float32)
    best, best_loss = delta, math.inf
    looks: list[Look] = []
    forwards = 0
    recent: list[float] = []
    step = 0
    while True:
        if step % config.check_every == 0 or step == config.steps:
            terms = task.evaluate(delta[None])
            loss, probability = float(terms.total[0]), float(terms.target_probability[0])
            forwards += 1
            looks.append(Look(forwards, loss, probability))
            if loss < best_loss:
                best, best_loss = delta, loss
            done = bool(terms.greedy[0].all()) and probability >= config.stop_probability
        task.report(Progress(step, config.steps, loss, probability))
        if done or step == config.steps:
            return SearchResult(delta if done else best, step, done, tuple(looks))
        directions = random_directions(rng, config.directions, width)
        gradient, mean_loss = estimate_gradient(task, delta, directions, mu)
        forwards += 2 * len(directions)
        delta = within(delta + adam.step(gradient, _rate(step, config) * value_norm), config.clamp * value_norm)
        recent.append(mean_loss)
        if _stalled(recent, config):
            task.problem.refresh(delta)
            recent.clear()
        step += 1


def estimate_gradient(task: SearchTask, delta: Floats, directions: Floats, mu: float) -> tuple[Floats, float]:
    """Return central differences of the loss along directions, summed up to a gradient; costs two forwards each.

    Parameters
    ----------
    delta
        [D] where.
    directions
        [N, D] orthonormal rows: the estimate is the gradient's projection on them.
    mu
        Length of a perturbation.

    Returns
    -------
    tuple
        The estimate [D], and the mean loss of all perturbed deltas.
    """
    offsets = mu * np.concatenate([directions, -directions])
    losses = task.evaluate(np.asarray(delta + offsets, np.float32)).total
    plus, minus = np.split(losses, 2)
    return np.asarray(((plus - minus) / (2 * mu)) @ directions, np.float32), float(losses.mean())


def random_directions(rng: np.random.Generator, n: int, width: int) -> Floats:
    """[n, width] random orthonormal rows; beyond ``width`` rows they come in independent blocks."""
    blocks = []
    while n > 0:
        rows = min(n, width)
        q, _ = np.linalg.qr(rng.standard_normal((width, rows)))
        blocks.append(q.T.astype(np.float32))
        n -= rows
    return np.concatenate(blocks)


def _rate(step: int, config: ZerothOrderConfig) -> float:
    decay = 0.5 * (1 + math.cos(math.pi * step / config.steps))
    return config.learning_rate * (config.final_rate + (1 - config.final_rate) * decay)


def _stalled(recent: list[float], config: ZerothOrderConfig) -> bool:
    """Whether the loss fell by less than the policy's drop over its window of steps."""
    window = config.stale_window
    return len(recent) > window and recent[-window - 1] - recent[-1] < config.stale_drop
