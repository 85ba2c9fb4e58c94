"""An edit on the tiny real model as a task of the Gauss-Newton search, and what a test may ask of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mobiedit.runtime.configuration import GaussNewtonConfig
from mobiedit.runtime.costs import CostMeter
from mobiedit.runtime.edit_problem import Floats
from mobiedit.runtime.gauss_newton import _Point, _Search
from mobiedit.runtime.lens import Lens
from mobiedit.runtime.prompt_rows import EditRequest
from mobiedit.runtime.readout_loss import LossTerms, ReadoutLoss, log_softmax
from mobiedit.runtime.search import Progress, SearchResult, SearchTask

REQUESTS = {
    "one-token": EditRequest("The book of {} is", "Paris", "the"),
    "several-tokens": EditRequest("The mother tongue of {} is", "Anna Miller", "old"),
}
SMALL = GaussNewtonConfig(steps=6, directions=8, top_tokens=32)
REACHABLE = GaussNewtonConfig(directions=8, clamp=20.0, stop_probability=0.15)
"""What weights without training can be taught: their values are short, and no direction does one thing alone."""
# Curvature: differences to one side against central ones, both of a hundredth of the value's norm.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Case:
    """A task, and what it counts."""

    task: SearchTask
    meter: CostMeter
    asked: list[Floats]
    """The deltas of every evaluation over all rows."""
    progress: list[Progress]

    def answer(self) -> Floats:
        """Return the log-probabilities [V] of what follows the bare prompt."""
        return log_softmax(self.task.decoder.run_head(self.task.problem.initial_readouts[0, 0, :1]))[0]

    def loss(self, delta: Floats) -> LossTerms:
        """Return the loss of one delta, uncounted."""
        forwards = self.meter.forwards
        terms = self.task.evaluate(delta[None])
        self.meter.forwards = forwards
        return terms


@dataclass(frozen=True)
class Rows:
    """What a point shall give: the target's probability in both rows, what it leads by, and whether it comes again."""

    probabilities: tuple[float, float]
    leads: tuple[float, float] = (0.1, 0.1)
    echoing: bool = False


class Chosen:
    """Stands in for the loss: the points of each call give what was chosen for it, those of later calls the last."""

    def __init__(self, loss: ReadoutLoss, *calls: tuple[Rows, ...]) -> None:
        self.kept_log_probs, self.config, self.behind = loss.kept_log_probs, loss.config, loss.behind
        self._calls = calls
        self.asked: list[Floats] = []

    def __call__(self, readouts: Floats, kept: Floats, deltas: Floats) -> LossTerms:
        points = self._calls[min(len(self.asked), len(self._calls) - 1)]
        self.asked.append(deltas.copy())
        return terms_of(points * (len(deltas) // len(points)), readouts.shape[2])


def terms_of(points: tuple[Rows, ...], tokens: int = 1) -> LossTerms:
    """Return the terms of points whose rows give each of the target's tokens the row's probability."""
    log_probs = np.log(np.array([rows.probabilities for rows in points], np.float32))
    leads = np.array([rows.leads for rows in points], np.float32)
    echoing = np.array([rows.echoing for rows in points])
    return LossTerms(-log_probs.mean(axis=1), np.repeat(log_probs[..., None], tokens, axis=2), leads, echoing)


def away(case: Case, config: GaussNewtonConfig, lens: Lens) -> tuple[_Search, _Point]:
    """Return a search, and a point of it as far from the start as the value is long."""
    search = _Search(case.task, config, lens)
    delta = np.random.default_rng(1).standard_normal((1, len(case.task.value))).astype(np.float32)
    (point,) = search._evaluate(delta * np.float32(case.task.value_norm / np.linalg.norm(delta)))
    return search, point


def central_differences(task: SearchTask, delta: Floats, directions: Floats) -> tuple[Floats, Floats]:
    """Return derivatives along unit directions [n, D]: the rows' [n, R, t, D], the kept one's [n, K, D]."""
    length = np.float32(0.01 * task.value_norm)
    ahead, behind = (task.problem.readouts(delta + sign * length * directions) for sign in (1, -1))
    return (ahead[0] - behind[0]) / (2 * length), (ahead[1] - behind[1]) / (2 * length)


def losses_of(found: SearchResult) -> list[float]:
    return [look.loss for look in found.looks]
