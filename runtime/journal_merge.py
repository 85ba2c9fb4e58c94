"""Two journals of one base that grew apart become one: no edit is lost, and what either side undid stays undone.

Only order and identifiers decide, never times: the clock of a device may be wrong by years.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import JournalError
from .journal import Journal, encode
from .journal_records import EditRecord, Record, UndoRecord
from .lock import editing_lock


@dataclass(frozen=True)
class Merged:
    """What a merge added to a journal.

    Attributes
    ----------
    edits
        The identifiers of the edits that were new, in order; some may be undone.
    undone
        Those of the edits that were withdrawn by it, new ones among them.
    active
        How many edits are in force now.
    """

    edits: tuple[str, ...]
    undone: tuple[str, ...]
    active: int


def merge_records(own: Sequence[Record], other: Sequence[Record]) -> tuple[Record, ...]:
    """Return all records of two journals: `own` as it is, then what `other` alone has, in its order.

    An edit that both have is there once, and so is its undo, which keeps `own`'s time.

    Raises
    ------
    JournalError
        If an edit of the same identifier differs.
    """
    known = {_identity(record): record for record in own}
    new = []
    for record in other:
        same = known.get(_identity(record))
        if same is None:
            new.append(record)
        elif isinstance(record, EditRecord) and encode(same) != encode(record):
            raise JournalError(
                f"edit {record.edit_id} is another one in each of the two journals: undo it on one side and "
                "teach it again there, in a bundle without the other's edits"
            )
    return (*own, *new)


def active_edits(records: Iterable[Record]) -> tuple[EditRecord, ...]:
    """Return the edits of a journal's records that are not undone, oldest first."""
    active: dict[str, EditRecord] = {}
    for record in records:
        if isinstance(record, EditRecord):
            active[record.edit_id] = record
        else:
            active.pop(record.edit_id)
    return tuple(active.values())


def require_slots(records: Iterable[Record], slots: int) -> None:
    """Refuse records with more active edits than there are slots.

    Raises
    ------
    JournalError
        If the slots do not suffice.
    """
    if (count := len(active_edits(records))) > slots:
        raise JournalError(
            f"the journal grew on both sides, to {count} edits for {slots} slots: undo {count - slots} of them on "
            "either side and try again; nothing was changed"
        )


def journal_bytes(records: Iterable[Record]) -> bytes:
    """Return a journal file of these records."""
    return b"".join(map(encode, records))


def merge_into(folder: Path, base_sha256: str, slots: int, records: Sequence[Record]) -> Merged:
    """Append to the journal in `folder` what it lacks of `records`; one write, durable on return.

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
        own = journal.read().records
        merged = merge_records(own, records)
        require_slots(merged, slots)
        new = merged[len(own) :]
        if new:
            journal.append_merged(new)
    return Merged(
        tuple(record.edit_id for record in new if isinstance(record, EditRecord)),
        tuple(record.edit_id for record in new if isinstance(record, UndoRecord)),
        len(active_edits(merged)),
    )


def _identity(record: Record) -> tuple[bool, str]:
    """Return what makes a record the same one in two journals: an edit is undone at most once."""
    return isinstance(record, EditRecord), record.edit_id
