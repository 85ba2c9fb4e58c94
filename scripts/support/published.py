"""The search of MobiEdit's public code, as a baseline.

Taken from the public code (github.com/Luzhenyan/MobiEdit, ``models/rome/zo.py`` and ``compute_v.py``,
``hparams/ROME_new``): 600 steps; in each, 5 Gaussian directions from one of 42 seeds, so 210 different ones at most;
for each direction the loss at delta - mu u, at delta and at delta + mu u, of which the gradient takes the outer two;
plain gradient descent along the sum of the 5 estimates, its rate 0.05 on a half cosine; mu 0.001; delta clamped to 4
norms of the value; weight decay 0.001. Its early stopping is commented out. Neither rate nor mu could be verified in
the paper's text (arXiv 2506.13772). Not followed: with its stale cache the code drops the cache and lengthens the steps
by half after step 400; it reads the loss for its cache's policy off the last direction, as here; and it refreshes the
cache within each of a step's forwards, where here one refresh a step is computed, which is to its advantage; it turns
the cache off when all five estimates are zero. A step's 15 forwards run here as one batch, there one by one.
The rows, k*, the direction of the rank-one update and the layer are the bundle's, so that searches alone are compared.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mobiedit.runtime import EditConfig, LossConfig
from mobiedit.runtime.evaluation import ForeignSearch
from mobiedit.runtime.search import Look, Progress, SearchResult, SearchTask, within

Floats = NDArray[np.float32]

PUBLISHED_STEPS = 600
PUBLISHED_LOSS = LossConfig(kl_factor=0.0625, weight_decay=1e-3, echo_factor=0)


@dataclass(frozen=True)
class PublishedConfig:
    """The published search.

    Attributes
    ----------
    steps
        Steps that are run, of the 600 over which the rate decays.
    directions, seeds
        Directions a step, three forwards each; and how many sets of them there are.
    mu
        Factor of a standard Gaussian direction.
    learning_rate
        At the first step.
    clamp
        Largest norm of delta, relative to the value's.
    relative
        Lengths relative to the norm of the value, for models of another scale: a perturbation is about ``mu`` such
        norms long, a step ``learning_rate`` of them, along the estimate.
    look_every
        Steps between two looks at delta, a forward each; the published code has them every 20 steps.
    stop_at_success
        End at a look that finds the target greedy and its mean probability at ``stop_probability``, the default
        optimizer's own where nothing else is said.
    stale_drop
        The drop of the loss from one step to the next at or below which a stale cache is computed again.
    seed
        Seed of the choice among the sets.
    """

    steps: int = PUBLISHED_STEPS
    directions: int = 5
    seeds: int = 42
    mu: float = 1e-3
    learning_rate: float = 5e-2
    clamp: float = 4.0
    relative: bool = False
    look_every: int = 20
    stop_at_success: bool = False
    stop_probability: float = EditConfig().of_optimizer.stop_probability
    stale_drop: float = 1e-3
    seed: int = 0

    @property
    def whole_forwards(self) -> int:
        """Forwards of all published steps, looks included."""
        return 3 * self.directions * PUBLISHED_STEPS + math.ceil(PUBLISHED_STEPS / self.look_every) + 1


def published(task: SearchTask, config: PublishedConfig) -> SearchResult:
    """Search for delta as the public code does; returns the last delta, not the best."""
    value_norm, width = task.value_norm, len(task.value)
    mu = config.mu * (value_norm / math.sqrt(width) if config.relative else 1)
    choice = np.random.default_rng(config.seed)
    delta = np.zeros(width, np.float32)
    looks: list[Look] = []
    losses: list[float] = []
    forwards = step = 0
    while True:
        done = False
        if step % config.look_every == 0 or step == config.steps:
            terms = task.evaluate(delta[None])
            forwards += 1
            loss, probability = float(terms.total[0]), float(terms.target_probability[0])
            looks.append(Look(forwards, loss, probability))
            success = bool(terms.greedy[0].all()) and probability >= config.stop_probability
            done = config.stop_at_success and success
        task.report(Progress(step, config.steps, loss, probability))
        if done or step == config.steps:
            return SearchResult(delta, step, done, tuple(looks))
        directions = _directions(int(choice.integers(config.seeds)), config.directions, width)
        gradient, loss_now = _gradient(task, delta, directions, mu)
        forwards += 3 * config.directions
        rate = config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / PUBLISHED_STEPS))
        if config.relative:
            rate *= value_norm / (float(np.linalg.norm(gradient)) or 1)
        delta = within(np.asarray(delta - rate * gradient, np.float32), config.clamp * value_norm)
        if losses and losses[-1] - loss_now <= config.stale_drop:
            task.problem.refresh(delta)
        losses.append(loss_now)
        step += 1


def published_search(config: PublishedConfig) -> ForeignSearch:
    """Return the search for a benchmark."""
    return ForeignSearch("published", asdict(config), partial(published, config=config))


def _directions(seed: int, n: int, width: int) -> Floats:
    """[n, width] the directions of one seed: always the same."""
    return np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)


def _gradient(task: SearchTask, delta: Floats, directions: Floats, mu: float) -> tuple[Floats, float]:
    """Return the sum of the directions' estimates [D], and the loss at delta, which is computed for each of them."""
    shifted = (delta - mu * directions, delta + 0 * directions, delta + mu * directions)
    minus, bare, plus = np.split(task.evaluate(np.concatenate(shifted).astype(np.float32)).total, 3)
    return np.asarray(((plus - minus) / (2 * mu)) @ directions, np.float32), float(bare[-1])
