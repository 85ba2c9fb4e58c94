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

_LEAST_OPENING = 0.1
"""Text's tokens have activations of a few hundredths: a gate that is open there would be none."""
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


def strength(activations: Floats, parameters: Floats) -> Floats:
    """Return how strongly edits act, as the edit graph computes it.

    Parameters
    ----------
    activations
        [...] of one edit, or [..., N].
    parameters
        [4] of `gate_parameters`, or [4, N].
    """
    scale, shift, least, largest = parameters
    return np.asarray(np.clip(activations * scale + shift, least, largest), np.float32)


@dataclass(frozen=True)
class GateConfig:
    """How wide gates are.

    Attributes
    ----------
    opening
        Activation from which on an edit acts in full, at most.
    closed_share
        The part of it up to which the edit does nothing.
    """

    opening: float = 0.7
    closed_share: float = 0.57

    def __post_init__(self) -> None:
        """Refuse values that make no gate."""
        self.gate(self.opening)

    def gate(self, opening: float) -> Gate:
        """Return the gate that is open from ``opening`` on."""
        return Gate(self.closed_share * opening, opening)

    def opening_for(self, activations: Floats) -> float:
        """Return from which activation on an edit shall act in full, so that it does so on its own rows.

        Parameters
        ----------
        activations
            [R] at the subject of each rewriting row, the bare prompt's first: a subject that opens a text has a key of
            its own, which may be far from the mean that k* is.
        """
        bare, prefixed = float(activations[0]), float(activations[1:].mean()) if len(activations) > 1 else 1.0
        return min(self.opening, max(_LEAST_OPENING, min(bare, prefixed)))
