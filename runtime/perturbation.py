"""How long a difference has to be for the graphs that it is taken of."""

from __future__ import annotations

from dataclasses import replace

from .configuration import GaussNewtonConfig

LEAST = {"w8": 0.3, "mixed": 0.4, "w8a8": 0.4, "w8a16": 0.1}
"""Least length, relative to the norm of the value, by the bundle's precision: a short difference drowns in activations
of 8 bits, whether they are rounded anew in each run (``w8``) or on a fixed grid, and in part in those of 16 bits
(docs/experiments/optimiser.md)."""


def for_precision(config: GaussNewtonConfig, precision: str) -> GaussNewtonConfig:
    """Return the settings with a ``mu`` that the precision's rounding allows."""
    return replace(config, mu=max(config.mu, LEAST.get(precision, 0.0)))
