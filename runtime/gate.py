"""How strongly an edit acts on a token: in proportion to the token's activation, or on keys like its own alone.

A token's activation is the product of its key with the edit's direction; 1 stands for the edit's own key k*. A rank-one
update acts on every token in proportion to it: a little everywhere, which adds up over hundreds of edits. A gate lets
nothing through below one activation and everything above another (after the deferral radius of GRACE, Hartvigsen et al.
2023, arXiv 2211.11031, and with its own linear part in between).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import RequestError

Floats = NDArray[np.float32]

_UNBOUNDED = 6e4
"""Stands for no bound: no activation comes near it, and it is within the range of float16."""


@dataclass(frozen=True)
class Gate:
    """``clip((a - closed) / (open - closed), 0, 1)`` of an activation a.

    Attributes
    ----------
    closed
        Activation up to which the edit does nothing.
    open
        Activation from which on it acts in full.
    """

    closed: float
    open: float

    def __post_init__(self) -> None:
        """Refuse bounds that the edit's own key would not pass."""
        if not (math.isfinite(self.closed) and 0 <= self.closed < self.open <= 1):
            raise RequestError("a gate's bounds must lie in 0 to 1, the lower one first: give for example 0.6 and 0.9")


def gate_parameters(gate: Gate | None) -> Floats:
    """Return [4] scale, shift, least and largest strength, as the edit graph takes them; None is no gate."""
    if gate is None:
        return np.array([1, 0, -_UNBOUNDED, _UNBOUNDED], np.float32)
    scale = 1 / (gate.open - gate.closed)
    return np.array([scale, -gate.closed * scale, 0, 1], np.float32)


def strength(activations: Floats, gate: Gate | None) -> Floats:
    """Return how strongly an edit acts at activations [...], as the edit graph computes it."""
    scale, shift, least, largest = gate_parameters(gate)
    return np.asarray(np.clip(activations * scale + shift, least, largest), np.float32)
