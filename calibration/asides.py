"""What else is asked about the subjects that a lens is fitted on: there, what the model says shall stay.

A lens that is fitted on targets alone learns deltas that say the target whatever is asked. Some of that costs nothing
to unlearn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .fact_rows import FactRows, FactRunner
from .facts import FactRow

LogProbs = Callable[[FactRows, Tensor], Tensor]
"""Rows and their deltas [B, D] to log-probabilities [M, V] at their read-outs."""


@dataclass(frozen=True)
class Asides:
    """The asides of a batch of facts, A rows with M read-outs: at a prompt's end and within its target.

    Attributes
    ----------
    rows
        The asides.
    owners
        [A] for each, the fact in the batch whose subject it asks about.
    before
        [M, V] log-probabilities at the read-outs without delta.
    log_probs
        How they are computed.
    """

    rows: FactRows
    owners: Tensor
    before: Tensor
    log_probs: LogProbs

    @staticmethod
    def run(runner: FactRunner, facts: Sequence[FactRow], log_probs: LogProbs) -> Asides | None:
        """Return the asides of a batch of facts; None where there are none."""
        owned = [(owner, fact.aside) for owner, fact in enumerate(facts) if fact.aside is not None]
        if not owned:
            return None
        rows = runner.run([aside for _, aside in owned])
        with torch.no_grad():
            before = log_probs(rows, torch.zeros_like(rows.context))
        return Asides(rows, torch.tensor([owner for owner, _ in owned]), before, log_probs)

    def divergence(self, deltas: Tensor) -> Tensor:
        """Return [A] KL from before an edit to behind it, in nats: the mean over an aside's read-outs.

        Parameters
        ----------
        deltas
            [B, D] of the facts.
        """
        moved = self.before - self.log_probs(self.rows, deltas[self.owners])
        return self.rows.means((self.before.exp() * moved).sum(dim=-1))
