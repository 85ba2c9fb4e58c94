"""How far a Gauss-Newton search trusts what it has measured, and what it changes when that misleads it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .configuration import GaussNewtonConfig

DAMPINGS = (4.0, 1.0, 0.25)
"""Tried together in an epoch, relative to the damping."""

GIVE_UP = 8
"""Failed epochs in a row that end a search."""

_REJECTED, _STRONGEST = 3.0, 16.0  # growth of the damping, and where it ends: a step too short to fail teaches nothing
_SHORTEST = 0.25  # of a perturbation's length: behind what a precision allows, a difference is rounding
_WIDENING, _WIDEST = 1.25, 2.0  # growth of the limit, and where it ends
_AT_LIMIT = 0.98


@dataclass(frozen=True)
class Trust:
    """The settings of an epoch.

    Attributes
    ----------
    config
        What they start from.
    damping
        Penalty of the step, times its squared length relative to the value's.
    mu
        Length of a perturbation, relative to the value's norm.
    clamp
        Largest norm of delta, relative to the value's.
    failures
        Epochs in a row without a better delta.
    alike
        Whether rows may stand in for one another (`RowGroups`): until an epoch has failed.
    """

    config: GaussNewtonConfig
    damping: float
    mu: float
    clamp: float
    failures: int = 0
    alike: bool = True

    @staticmethod
    def full(config: GaussNewtonConfig) -> Trust:
        """Return what a search begins with."""
        return Trust(config, config.damping, config.mu, config.clamp)

    @property
    def lost(self) -> bool:
        """Whether the search should give up."""
        return self.failures == GIVE_UP

    def after_failure(self, norm: float) -> Trust:
        """Return the settings behind an epoch without a better delta than one of this relative norm.

        Shorter steps and differences. A delta that is stuck at the clamp gets a wider one: a fact that
        is hard to teach is worth a longer delta.
        """
        stuck = norm > _AT_LIMIT * self.clamp
        return replace(
            self,
            damping=min(_REJECTED * self.damping, _STRONGEST),
            mu=max(self.mu / 2, _SHORTEST * self.config.mu),
            clamp=min(_WIDENING * self.clamp, _WIDEST * self.config.clamp) if stuck else self.clamp,
            failures=self.failures + 1,
            alike=False,
        )

    def after_success(self, factor: float) -> Trust:
        """Return the settings behind an epoch whose best step had ``factor`` times the damping."""
        return replace(self, damping=factor * self.damping, mu=self.config.mu, failures=0)
