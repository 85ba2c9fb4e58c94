"""What happened to a bundle's edits: every record in order, with what became of it and what the edit achieved."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .journal_records import EditRecord, Record, UndoRecord
from .journal_state import JournalState


@dataclass(frozen=True)
class Measured:
    """The fact on its bare prompt: the target's probability, and whether greedy decoding yields it; None: not told."""

    probability: float | None
    greedy: bool | None


@dataclass(frozen=True)
class HistoryEntry:
    """A record and what became of it.

    Attributes
    ----------
    kind
        "edit", "undo" or "forget".
    state
        Of an edit: "in force", "replaced", "undone"; of a tombstone "forgotten"; None for an undo.
    replaced_by
        The edit in force of the same fact, where this one is replaced.
    ended
        When it was undone or forgotten.
    fact
        Prompt with subject, and target; None where the record has none.
    before, after
        The fact before and after the edit.
    """

    kind: str
    edit_id: str
    created: str
    state: str | None = None
    replaced_by: str | None = None
    ended: str | None = None
    fact: tuple[str, str] | None = None
    method: str | None = None
    batch: str | None = None
    before: Measured | None = None
    after: Measured | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    @property
    def words(self) -> str:
        """What became of it, in words."""
        if self.kind == "undo":
            return f"undo of {self.edit_id}"
        if self.replaced_by:
            return f"replaced by {self.replaced_by}"
        return f"{self.state} at {self.ended}" if self.ended else str(self.state)


def history(state: JournalState) -> tuple[HistoryEntry, ...]:
    """Return every record of a journal with its state now, in order."""
    in_force = {edit.fact: edit.edit_id for edit in state.edits}
    return tuple(_entry(record, state, in_force) for record in state.records)


def _entry(record: Record, state: JournalState, in_force: dict[tuple[str, str], str]) -> HistoryEntry:
    if isinstance(record, UndoRecord):
        return HistoryEntry("undo", record.edit_id, record.created)
    if not isinstance(record, EditRecord):
        return HistoryEntry("forget", record.edit_id, record.created, "forgotten", ended=record.created)
    ended, now, covering = state.replay.undone.get(record.edit_id), "in force", None
    if ended:
        now = "undone"
    elif (last := in_force[record.fact]) != record.edit_id:
        now, covering = "replaced", last
    return HistoryEntry(
        "edit",
        record.edit_id,
        record.created,
        now,
        covering,
        ended,
        (record.prompt.replace("{}", record.subject), record.target),
        record.method,
        record.batch,
        _measured(record.report.get("success_before")),
        _measured(record.report.get("success")),
    )


def _measured(success: object) -> Measured:
    """Return what a report says of the fact; reports of another version may lack it."""
    told = success if isinstance(success, dict) else {}
    probability, greedy = told.get("target_prob"), told.get("greedy_match")
    return Measured(
        probability if isinstance(probability, float) else None,
        greedy if isinstance(greedy, bool) else None,
    )
