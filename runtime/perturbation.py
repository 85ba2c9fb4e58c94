"""How long a difference has to be for the graphs that it is taken of."""

from __future__ import annotations

from dataclasses import replace

from .configuration import GaussNewtonConfig

LEAST = {"w8": 0.3}
"""Least length, relative to the norm of the value, by the bundle's precision. The products of ``w8`` round their inputs
to 8 bits anew in each run, and a short difference drowns in that (docs/experiments/optimiser.md). Static activations
round the same way in every run, on a grid of 16 bits."""


def for_precision(config: GaussNewtonConfig, precision: str) -> GaussNewtonConfig:
    """Return the settings with a ``mu`` that the precision's rounding allows."""
    return replace(config, mu=max(config.mu, LEAST.get(precision, 0.0)))
