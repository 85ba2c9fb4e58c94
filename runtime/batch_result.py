"""What a batch of edits tells: while it is searched for, and at its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .closed_form import Method
from .configuration import Optimizer
from .costs import Cost
from .edit_records import record_of
from .edit_result import EditResult, SolvedEdit
from .journal_records import EditRecord, new_edit_id
from .manifest import Manifest
from .prompt_rows import EditRequest
from .search import Progress


@dataclass(frozen=True)
class BatchProgress:
    """How many of a batch's edits were searched for, and how far the next one's search is."""

    done: int
    edits: int
    search: Progress | None


@dataclass(frozen=True, eq=False)
class SolvedBatch:
    """A batch that was searched for and checked, not yet committed.

    Attributes
    ----------
    batch
        Its identifier.
    requests, edits
        What was asked for, and how each came out, in the same order.
    kept
        The places of those that are to be committed, in the order that they were solved in.
    cost
        Of all edits together, of what they share as well.
    compaction_error
        As in `SolvedEdit`, with those that are kept in force.
    """

    batch: str
    method: Method
    requests: tuple[EditRequest, ...]
    edits: tuple[SolvedEdit, ...]
    kept: tuple[int, ...]
    cost: Cost
    compaction_error: float

    def result(self, optimizer: Optimizer) -> BatchResult:
        """Return what becomes of the requests when those that are kept are committed."""
        edits = tuple(
            edit.result(new_edit_id() if place in self.kept else None, optimizer)
            for place, edit in enumerate(self.edits)
        )
        return BatchResult(self.batch, self.method.value, self.requests, edits, self.cost, self.compaction_error)

    def records(self, result: BatchResult, manifest: Manifest) -> tuple[EditRecord, ...]:
        """Return the journal's records of the edits that are committed, in order."""
        return tuple(record_of(self.requests[i], self.edits[i], result.edits[i], manifest) for i in self.kept)


@dataclass(frozen=True)
class BatchResult:
    """What became of a batch.

    Attributes
    ----------
    batch
        What the committed edits have in common in the journal.
    requests, edits
        What was asked for, and what became of each, in the same order.
    cost, compaction_error
        As in `SolvedBatch`.
    """

    batch: str
    method: str
    requests: tuple[EditRequest, ...]
    edits: tuple[EditResult, ...]
    cost: Cost
    compaction_error: float

    @property
    def committed(self) -> int:
        """How many edits are in the journal."""
        return sum(edit.committed for edit in self.edits)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data, for ``--json``."""
        names = ("prompt", "subject", "target")
        return {
            "batch": self.batch,
            "method": self.method,
            "committed": self.committed,
            "left_out": len(self.edits) - self.committed,
            "edits": [
                {**{name: getattr(request, name) for name in names}, **edit.to_dict()}
                for request, edit in zip(self.requests, self.edits, strict=True)
            ],
            "compaction_error": self.compaction_error,
            "cost": self.cost.to_dict(),
        }
