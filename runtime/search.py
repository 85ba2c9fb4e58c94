"""What every search of delta tells: while it runs, and at its end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
        [D] the best delta seen.
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
