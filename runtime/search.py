"""What a search of delta works on, and what it tells: while it runs, and at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .decoder import Decoder
from .edit_problem import EditProblem
from .readout_loss import LossTerms, ReadoutLoss

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Look:
    """The state of a search at one moment: the forwards that it has cost, the total loss, the target's probability."""

    forwards: int
    loss: float
    target_probability: float


@dataclass(frozen=True)
class SearchResult:
    """Where a search ended.

    Attributes
    ----------
    delta
        [D] what the search takes: the best one seen, where it is a search of this package.
    steps
        Steps taken.
    stopped_early
        Whether the stopping rule ended the search.
    looks
        What it saw on its way, the start first.
    """

    delta: Floats
    steps: int
    stopped_early: bool
    looks: tuple[Look, ...]


@dataclass(frozen=True)
class Progress:
    """What a search tells while it runs."""

    step: int
    steps: int
    loss: float
    target_probability: float


@dataclass(frozen=True)
class SearchTask:
    """What a search works on.

    Attributes
    ----------
    problem
        Deltas in, hidden states at the read-outs out; each delta costs a forward.
    loss
        What is minimised.
    value
        [D] the value at the subject before the edit; its norm is the unit of every length.
    context
        [R, D] residual stream behind the edit layer at the subject of each rewriting row, before the edit.
    decoder
        For the vocabulary projection.
    report
        Called at every step.
    """

    problem: EditProblem
    loss: ReadoutLoss
    value: Floats
    context: Floats
    decoder: Decoder
    report: Callable[[Progress], None] = lambda progress: None

    @cached_property
    def value_norm(self) -> float:
        """The norm of the value."""
        return float(np.linalg.norm(self.value))

    def evaluate(self, deltas: Floats) -> LossTerms:
        """Return the loss of deltas [N, D]; costs N forwards."""
        return self.loss(*self.problem.readouts(deltas), deltas)


class Search(Protocol):
    """A way to search for delta."""

    def __call__(self, task: SearchTask) -> SearchResult:
        """Return the best delta found."""


def within(delta: Floats, limit: float) -> Floats:
    """Return ``delta`` [D], shortened to the length ``limit`` if it is longer."""
    norm = float(np.linalg.norm(delta))
    return delta if norm <= limit else np.asarray(delta * (limit / norm), np.float32)
