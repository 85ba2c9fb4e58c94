"""What a journal's records come to: which edits are in force, covered, undone or forgotten.

The last edit taught of a fact is in force and covers the earlier ones. When it is undone, the last of them that is not
undone itself is in force again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from reprlib import repr as short

from .errors import JournalError
from .files import read_regular
from .journal_format import check_torn, decode, frames, torn_kind
from .journal_records import EditRecord, Record, UndoRecord


@dataclass
class Replay:
    """Records played one after the other.

    Attributes
    ----------
    taught
        Every edit by its identifier, in order.
    undone, forgotten
        When edits were withdrawn, by identifier.
    """

    taught: dict[str, EditRecord] = field(default_factory=dict)
    undone: dict[str, str] = field(default_factory=dict)
    forgotten: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(records: Iterable[Record]) -> Replay:
        """Return records played; ValueError as `add`."""
        replay = Replay()
        for record in records:
            replay.add(record)
        return replay

    def add(self, record: Record) -> None:
        """Play one more record; ValueError if it cannot stand behind the others."""
        name = record.edit_id
        if isinstance(record, UndoRecord):
            if name not in self.taught or name in self.undone:
                raise ValueError(f"undo of {name}, which is not active")
            self.undone[name] = record.created
            return
        if name in self.taught or name in self.forgotten:
            raise ValueError(f"edit {name} is there twice")
        if isinstance(record, EditRecord):
            self.taught[name] = record
        else:
            self.forgotten[name] = record.created

    @property
    def active(self) -> tuple[EditRecord, ...]:
        """The edits that are not undone, covered ones among them, oldest first."""
        return tuple(edit for name, edit in self.taught.items() if name not in self.undone)

    def in_force(self) -> tuple[EditRecord, ...]:
        """Return the last active edit of each fact, in the order in which they were taught."""
        last = {edit.fact: edit for edit in self.active}
        chosen = {edit.edit_id for edit in last.values()}
        return tuple(edit for edit in self.active if edit.edit_id in chosen)


@dataclass(frozen=True)
class JournalState:
    """What a journal holds.

    Attributes
    ----------
    edits
        Those in force, in the order in which they were taught.
    records
        All, in order.
    valid_bytes, dropped_bytes
        The lengths of its good part and of its torn tail.
    torn_kind
        What the torn tail began: edit, undo or forget; None where it does not tell.
    """

    edits: tuple[EditRecord, ...]
    records: tuple[Record, ...]
    valid_bytes: int
    dropped_bytes: int
    torn_kind: str | None = None

    @cached_property
    def replay(self) -> Replay:
        """The records, played."""
        return Replay.of(self.records)

    @property
    def active(self) -> tuple[EditRecord, ...]:
        """The edits that are not undone, oldest first: those in force, and those that they cover."""
        return self.replay.active

    @property
    def dropped(self) -> str:
        """What the next write drops, in words."""
        what = {"edit": "an interrupted edit", "undo": "an interrupted undo", "forget": "an interrupted forgetting"}
        return f"{self.dropped_bytes} bytes of {what.get(self.torn_kind or '', 'an interrupted write')}"


def in_force(records: Iterable[Record]) -> tuple[EditRecord, ...]:
    """Return the edits in force after these records, in the order in which they were taught."""
    return Replay.of(records).in_force()


def read_journal(path: Path, base_sha256: str) -> JournalState:
    """Read a journal; one that does not exist is empty, and a torn tail is left out.

    Raises
    ------
    JournalError
        If the journal is damaged before its end, or an edit belongs to a model other than `base_sha256`.
    BundleError
        If the journal is a link or no regular file.
    StorageError
        If it may not be read.
    """
    return parse_journal(read_regular(path) or b"", path, base_sha256)


def parse_journal(data: bytes, source: Path | str, base_sha256: str) -> JournalState:
    """Return what a journal's bytes hold; `source` says where they are from. JournalError as of `read_journal`."""
    records: list[Record] = []
    replay = Replay()
    offset = 0
    try:
        for payload, end in frames(data):
            for record in decode(payload):
                replay.add(record)
                check_base(record, base_sha256)
                records.append(record)
            offset = end
        check_torn(data[offset:])
    except ValueError as error:
        raise JournalError(
            f"{source} is damaged at byte {offset} ({error}); restore it from a backup, "
            f"or cut it to {offset} bytes to keep only the edits before the damage"
        ) from error
    dropped = len(data) - offset
    return JournalState(replay.in_force(), tuple(records), offset, dropped, torn_kind(data[offset:]))


def check_base(record: Record, base_sha256: str) -> None:
    """Refuse an edit of another model; JournalError."""
    if isinstance(record, EditRecord) and record.base_sha256 != base_sha256:
        raise JournalError(
            f"edit {record.edit_id} belongs to another model ({short(record.base_sha256)}); "
            "use the bundle it was made for, or move the journal away to start without edits"
        )
