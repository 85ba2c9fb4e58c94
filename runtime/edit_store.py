"""The edits of a bundle as a whole: history, forgetting, taking them out and in, and whether they are intact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .bundle_layout import EDITS
from .edit_lines import from_lines, to_lines
from .errors import JournalError
from .forgetting import same_edit
from .history import HistoryEntry, history
from .journal import Forgotten, Journal
from .journal_merge import require_slots
from .journal_records import EditRecord
from .lock import editing_lock
from .manifest import Manifest


@dataclass(frozen=True)
class Imported:
    """What an import did: identifiers of the edits that were added, and of those that were there already."""

    added: tuple[str, ...]
    skipped: tuple[str, ...]


class EditStore:
    """The edits of the bundle in ``path``, whose graphs need not be opened for it.

    Attributes
    ----------
    folder
        Where its journal is.
    journal
        The journal.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.folder = path / EDITS
        self.journal = Journal(self.folder, manifest.edit_base)
        self._manifest = manifest

    def history(self) -> tuple[HistoryEntry, ...]:
        """Return every record in order, with its state now."""
        return history(self.journal.read())

    def forget(self, edit_id: str) -> Forgotten:
        """Withdraw an edit and erase its bytes; errors as of `Journal.forget`, and BusyError."""
        with editing_lock(self.folder):
            return self.journal.forget(edit_id)

    def export_lines(self, *, requests_only: bool = False) -> str:
        """Return the edits in force as JSON lines; see `to_lines`."""
        return to_lines(self.journal.read().edits, requests_only=requests_only)

    def import_lines(self, data: bytes) -> Imported:
        """Commit the edits of JSON lines, all or none; one that is here already is passed over, undone or not.

        Raises
        ------
        RequestError
            If a line is malformed, or an edit is of another model.
        JournalError
            If an edit was forgotten here, differs from one of the same identifier, or finds no slot.
        BusyError, StorageError
            As for any edit; nothing is imported.
        """
        shape = self._manifest.shape
        edits = from_lines(data, self._manifest.edit_base, (shape.mlp_width, shape.width))
        with editing_lock(self.folder):
            state = self.journal.read()
            known, new, skipped = dict(state.replay.taught), [], []
            for edit in edits:
                if edit.edit_id in state.replay.forgotten:
                    raise JournalError(
                        f"edit {edit.edit_id} was forgotten here: take its line out, or teach it again with "
                        "`mobiedit edit`; nothing was imported"
                    )
                if (same := known.setdefault(edit.edit_id, edit)) is edit:
                    new.append(edit)
                elif same_edit(same, edit):
                    skipped.append(edit.edit_id)
                else:
                    raise JournalError(
                        f"edit {edit.edit_id} is another one here: forget that one, or take the line out; "
                        "nothing was imported"
                    )
            require_slots((*state.records, *new), self._manifest.slots)
            self.journal.append_edits(new)
        return Imported(tuple(edit.edit_id for edit in new), tuple(skipped))

    def verify(self) -> dict[str, Any]:
        """Read every record and compare its vectors with the model's shape; return what was found.

        Raises
        ------
        JournalError
            If the journal is damaged, of another base, or an edit is of another shape.
        """
        state = self.journal.read()
        for edit in state.records:
            if isinstance(edit, EditRecord):
                self._require_shape(edit)
        return {
            "records": len(state.records),
            "edits": len(state.edits),
            "covered_edits": len(state.active) - len(state.edits),
            "torn_journal_bytes": state.dropped_bytes,
            "torn_record": state.torn_kind,
            "leftover_files": [path.name for path in self.journal.leftovers()],
        }

    def _require_shape(self, edit: EditRecord) -> None:
        shape = self._manifest.shape
        if (edit.key.size, edit.value.size) != (shape.mlp_width, shape.width):
            raise JournalError(f"edit {edit.edit_id} has another model's shape: forget it (mobiedit forget)")
