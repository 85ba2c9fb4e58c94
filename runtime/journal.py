"""The journal's file: read, appended to, and written anew when an edit is forgotten.

`journal_format` has its bytes, `journal_state` what they come to. All that writes needs `editing_lock`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from reprlib import repr as short

from .errors import JournalError
from .files import ensure_folder, fsync_folder, leftovers, remove_durably, write_atomic, write_tail
from .forgetting import without
from .journal_format import encode
from .journal_records import EditRecord, ForgetRecord, Record, UndoRecord
from .journal_state import JournalState, check_base, in_force, read_journal

JOURNAL_NAME = "journal"
ARRIVING_NAME = ".journal.new"
"""Where a journal from another machine is put before it takes the journal's place."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Forgotten:
    """What became of an edit that was to be forgotten.

    Attributes
    ----------
    created
        When it was forgotten.
    back
        The edit that it covered and that is in force again; None where there is none.
    """

    edit_id: str
    created: str
    back: str | None


class Journal:
    """The journal in `folder`, which the first append creates, bound to the model named by `base_sha256`."""

    def __init__(self, folder: Path, base_sha256: str) -> None:
        self.path = folder / JOURNAL_NAME
        self._base_sha256 = base_sha256

    def read(self) -> JournalState:
        """Read the journal, with or without the lock; errors as of `read_journal`."""
        return read_journal(self.path, self._base_sha256)

    def leftovers(self) -> list[Path]:
        """Return what killed writers left beside the journal; it may hold records, and the next write removes it."""
        return leftovers(self.path.parent, ARRIVING_NAME)

    def append_edits(self, records: Sequence[EditRecord]) -> None:
        """Commit edits, all or none: on return they are on the disk. The caller must hold `editing_lock`.

        Raises
        ------
        JournalError
            If an edit is of another model, too large, in the journal already or forgotten; and as of `read_journal`.
        StorageError
            If the disk refuses; the journal is as it was.
        ValueError, TypeError
            If a report is not JSON.
        """
        state = self.read()
        taken = {record.edit_id for record in state.records}
        for record in records:
            check_base(record, self._base_sha256)
            if record.edit_id in state.replay.forgotten:
                raise JournalError(f"edit {record.edit_id} was forgotten here; teach it again")
            if record.edit_id in taken:
                raise JournalError(f"edit {record.edit_id} is in the journal already; give it another identifier")
            taken.add(record.edit_id)
        self._append(state, records)

    def append_undo(self, edit_id: str) -> None:
        """Withdraw an active edit; JournalError if there is none of this identifier, else as `append_edits`."""
        state = self.read()
        active = [edit.edit_id for edit in state.active]
        if edit_id not in active:
            choice = f"name one of: {', '.join(active)}" if active else "there is nothing to undo"
            raise JournalError(f"no active edit {short(edit_id)}; {choice}")
        self._append(state, (UndoRecord(edit_id, _now()),))

    def forget(self, edit_id: str) -> Forgotten:
        """Withdraw an edit and erase it: the journal is written anew without its bytes. Once more does no harm.

        Other records lose the texts that repeat its words; see `forgetting`.

        Raises
        ------
        JournalError
            If there never was such an edit; and as of `read_journal`.
        StorageError
            If the disk refuses; the journal is as it was.
        """
        state = self.read()
        if edit_id in state.replay.forgotten:
            self._clear_leftovers()
            fsync_folder(self.path.parent)  # a forgetting that was killed may have come this far
            return Forgotten(edit_id, state.replay.forgotten[edit_id], None)
        edit = state.replay.taught.get(edit_id)
        if edit is None:
            choice = ", ".join(state.replay.taught)
            raise JournalError(
                f"no edit {short(edit_id)}; {f'name one of: {choice}' if choice else 'there is nothing to forget'}"
            )
        tombstone = ForgetRecord(edit_id, _now())
        records = (*without(state.records, (edit,)), tombstone)
        self._write_anew(state, records)
        before = {each.edit_id for each in state.edits}
        back = [each.edit_id for each in in_force(records) if each.edit_id not in before]
        return Forgotten(edit_id, tombstone.created, back[0] if back else None)

    def become(self, state: JournalState, records: Sequence[Record]) -> None:
        """Hold what a merge came to, all or nothing: appended where `state` stays as it is, else written anew.

        Parameters
        ----------
        state
            As it was read under the lock.
        records
            All that it shall hold.
        """
        old = len(state.records)
        if tuple(records[:old]) != state.records:  # records are equal where they are the same object
            self._write_anew(state, records)
        elif len(records) > old:
            self._append(state, records[old:])

    def _append(self, state: JournalState, records: Sequence[Record]) -> None:
        if not records:
            return
        try:
            frame = encode(records)
        except JournalError:
            if len(records) == 1:
                raise
            # Too many for one frame, and only one frame is there as a whole or not at all.
            self._write_anew(state, (*state.records, *records))
            return
        self._prepare(state)
        write_tail(self.path, state.valid_bytes, frame)

    def _write_anew(self, state: JournalState, records: Sequence[Record]) -> None:
        data = journal_bytes(records)
        self._prepare(state)
        write_atomic(self.path, data)

    def _prepare(self, state: JournalState) -> None:
        if state.dropped_bytes:
            _log.warning("%s: dropping %s", self.path, state.dropped)
        ensure_folder(self.path.parent)
        self._clear_leftovers()

    def _clear_leftovers(self) -> None:
        if found := self.leftovers():
            names = ", ".join(path.name for path in found)
            _log.warning("%s: removing %s of an interrupted write; forget again what is still listed", self.path, names)
            remove_durably(found)


def journal_bytes(records: Sequence[Record]) -> bytes:
    """Return a journal file of these records."""
    return b"".join(encode((record,)) for record in records)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
