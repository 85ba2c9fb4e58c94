"""What an edit came out as: before it is committed, and at its end."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .closed_form import Method
from .configuration import Optimizer
from .costs import Cost
from .edit_check import EditCheck
from .edit_set import NewEdit
from .search import SearchResult

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class SolvedEdit:
    """An edit that was searched for and checked, not yet committed.

    Attributes
    ----------
    key
        [F] k*.
    value
        [D] v*, the value that the update gives to the bare prompt's subject, delta included.
    direction
        [F] the right factor of the rank-one update; the left one is the search's delta.
    leverage
        ``k*^T C^-1 k*``.
    method, batch
        How it is fitted in among the others, and what its batch's edits have in common.
    compaction_error
        What the slots change of the effect of an edit in force at its own key, at most; relative to its delta.
    replaces
        The edit of the same fact that was in force.
    left_out
        Why a batch goes without it, although it took.
    gate
        As in `EditRecord`.
    """

    key: Floats
    value: Floats
    direction: Floats
    leverage: float
    search: SearchResult
    check: EditCheck
    cost: Cost
    method: Method = Method.GATED
    batch: str | None = None
    compaction_error: float = 0.0
    replaces: str | None = None
    left_out: tuple[str, ...] = ()
    gate: float | None = None

    @staticmethod
    def of(
        new: NewEdit, value: Floats, found: SearchResult, check: EditCheck, cost: Cost, compaction_error: float
    ) -> SolvedEdit:
        """Return what a search on top of ``value`` [D] found for an edit, which then was checked."""
        return SolvedEdit(
            new.key,
            value + found.delta,
            new.direction,
            new.leverage,
            found,
            check,
            cost,
            Method(new.method),
            new.batch,
            compaction_error,
            gate=new.gate,
        )

    @property
    def failures(self) -> tuple[str, ...]:
        """Why the edit should not be committed, one line each."""
        known = () if self.search.steps else ("the model gives this answer already: there is nothing to teach",)
        return (*known, *self.left_out, *self.check.failures)

    def result(self, edit_id: str | None, optimizer: Optimizer) -> EditResult:
        """Return what became of the request: committed as ``edit_id``, or not."""
        steps, early = self.search.steps, self.search.stopped_early
        return EditResult(
            edit_id,
            optimizer.value,
            self.method.value,
            steps,
            early,
            self.failures,
            self.check,
            self.cost,
            self.replaces if edit_id else None,
            self.compaction_error,
        )


@dataclass(frozen=True)
class EditResult:
    """What became of a request.

    Attributes
    ----------
    edit_id
        The journal's name for it, or None when it was not committed.
    failures
        What the check found wrong, one line each.
    replaces
        The edit of the same fact that was in force before; None when this one was not committed.
    compaction_error
        As in `SolvedEdit`.
    """

    edit_id: str | None
    optimizer: str
    method: str
    steps: int
    stopped_early: bool
    failures: tuple[str, ...]
    check: EditCheck
    cost: Cost
    replaces: str | None
    compaction_error: float

    @property
    def committed(self) -> bool:
        """Whether the edit is in the journal."""
        return self.edit_id is not None

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data, for ``--json`` and the journal."""
        return {
            "edit_id": self.edit_id,
            "committed": self.committed,
            "replaces": self.replaces,
            "optimizer": self.optimizer,
            "method": self.method,
            "steps": self.steps,
            "stopped_early": self.stopped_early,
            "success_before": asdict(self.check.success_before),
            "success": asdict(self.check.success),
            "paraphrases": [asdict(p) for p in self.check.paraphrases],
            "locality": self.check.locality(),
            "failures": list(self.failures),
            "compaction_error": self.compaction_error,
            "cost": self.cost.to_dict(),
        }
