"""Two journals of one base that grew apart become one: no edit is lost, and what either side undid or forgot stays so.

Only order and identifiers decide, never times: the clock of a device may be wrong by years. What only the other side
has comes behind the own records; so of a fact that both taught, the other side's edit is in force.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import JournalError
from .forgetting import least_told, same_edit, without
from .journal import Journal
from .journal_records import EditRecord, ForgetRecord, Record, UndoRecord
from .journal_state import in_force
from .lock import editing_lock


@dataclass(frozen=True)
class Merged:
    """What a merge did to a journal.

    Attributes
    ----------
    edits
        The identifiers of the edits that were new, in order; some may be undone.
    undone
        Those of the edits that were withdrawn by it, new ones among them.
    forgotten
        Those of the edits that were erased here, since the other side forgot them.
    replaced
        Those of the edits that were in force and are covered now: the other side taught the same facts.
    active
        How many edits are in force now.
    """

    edits: tuple[str, ...]
    undone: tuple[str, ...]
    forgotten: tuple[str, ...]
    replaced: tuple[str, ...]
    active: int


def merge_records(own: Sequence[Record], other: Sequence[Record]) -> tuple[Record, ...]:
    """Return all records of two journals: `own` as it is, then what `other` alone has, in its order.

    An edit that both have is there once, and so is its undo, which keeps `own`'s time. An edit that either side forgot
    is in neither part, nor are its words (see `forgetting`); other records of `own` are the same objects.

    Raises
    ------
    JournalError
        If an edit of the same identifier differs.
    """
    merged = {_identity(record): record for record in own}
    for record in other:
        same = merged.setdefault(_identity(record), record)
        if same is not record and isinstance(same, EditRecord) and isinstance(record, EditRecord):
            if not same_edit(same, record):
                raise JournalError(
                    f"edit {record.edit_id} is another one in each of the two journals: undo it on one side and "
                    "teach it again there, in a bundle without the other's edits"
                )
            merged[_identity(record)] = least_told(same, record)
    tombstones = {record.edit_id for record in merged.values() if isinstance(record, ForgetRecord)}
    edits = (record for record in (*own, *other) if isinstance(record, EditRecord))
    return without(merged.values(), [edit for edit in edits if edit.edit_id in tombstones])


def require_slots(records: Iterable[Record], slots: int) -> None:
    """Refuse records with more gated edits in force than there are slots; others share slots (see `compaction`).

    Raises
    ------
    JournalError
        If the slots do not suffice.
    """
    if (count := sum(edit.gate is not None for edit in in_force(records))) > slots:
        raise JournalError(
            f"the journal grew on both sides, to {count} gated edits for {slots} slots: "
            f"undo {count - slots} of them on either side and try again; nothing was changed"
        )


def merge_into(folder: Path, base_sha256: str, slots: int, records: Sequence[Record]) -> Merged:
    """Give the journal in `folder` what it lacks of `records`; one write, durable on return.

    Raises
    ------
    JournalError
        As `merge_records`, `require_slots` and `read_journal`; nothing is written.
    BusyError
        If another process edits the bundle.
    StorageError
        If the disk refuses; the journal is as it was.
    """
    journal = Journal(folder, base_sha256)
    with editing_lock(folder):
        state = journal.read()
        merged = merge_records(state.records, records)
        require_slots(merged, slots)
        journal.become(state, merged)
    known = {_identity(record) for record in state.records}
    new = [record for record in merged if _identity(record) not in known]
    now, left = {edit.edit_id for edit in in_force(merged)}, {record.edit_id for record in merged}
    withdrawn = {record.edit_id for record in merged if not isinstance(record, EditRecord)}
    return Merged(
        tuple(record.edit_id for record in new if isinstance(record, EditRecord)),
        tuple(record.edit_id for record in new if isinstance(record, UndoRecord)),
        tuple(r.edit_id for r in new if isinstance(r, ForgetRecord) and r.edit_id in state.replay.taught),
        tuple(edit.edit_id for edit in state.edits if edit.edit_id in left - withdrawn - now),
        len(now),
    )


def _identity(record: Record) -> tuple[type[Record], str]:
    """Return what makes a record the same one in two journals: an edit is undone at most once."""
    return type(record), record.edit_id
