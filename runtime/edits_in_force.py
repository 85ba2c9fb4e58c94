"""The edits in force by the journal, solved again only when its file has changed."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from .edit_set import EditSet, EditSetConfig
from .facts import FactKey, without
from .journal import Journal
from .journal_records import EditRecord
from .journal_state import JournalState
from .manifest import Manifest
from .prompt_rows import EditRequest

_log = logging.getLogger(__name__)
_Stamp = tuple[int, int, int]


class EditsInForce:
    """What a journal says now, held until the file is another one, or of another size or time.

    Parameters
    ----------
    config
        How edits are solved together.
    """

    def __init__(self, journal: Journal, manifest: Manifest, config: EditSetConfig | None = None) -> None:
        self._journal = journal
        self._manifest = manifest
        self._config = config
        self._held: tuple[_Stamp | None, JournalState, EditSet] | None = None

    def state(self) -> JournalState:
        """Return the journal as it is now; JournalError as `Journal.read` and `EditSet`."""
        return self._current()[0]

    def solved(self) -> EditSet:
        """Return the edits in force as one update; JournalError as `Journal.read` and `EditSet`.

        Slots that hold them badly, as after a merge of two journals, are a warning: nobody could undo an edit if
        nothing could be read.
        """
        return self._current()[1]

    def teaching(self, fact: FactKey) -> str | None:
        """Return the identifier of the edit in force that teaches a fact."""
        return next((edit.edit_id for edit in self.state().edits if edit.fact == fact), None)

    def taught(self) -> tuple[EditRequest, ...]:
        """Return the facts that are taught, oldest first."""
        return tuple(EditRequest(e.prompt, e.subject, e.target, e.paraphrases, e.keep) for e in self.state().edits)

    def without(self, facts: Collection[FactKey]) -> EditSet:
        """Return the edits in force but those of some facts, which are to be taught anew."""
        state, solved = self._current()
        others = without(state.edits, facts)
        return solved if len(others) == len(state.edits) else self._solve(others)

    def _current(self) -> tuple[JournalState, EditSet]:
        stamp = self._stamp()  # before the file is read: a change in between is seen the next time
        if self._held is None or self._held[0] != stamp:
            state = self._journal.read()
            solved = self._solve(state.edits)
            if not solved.holds:
                _log.warning(
                    "%d edits in %d slots: answers to some differ by up to %.0f %%; undo some of them",
                    len(state.edits),
                    self._manifest.slots,
                    100 * solved.compaction_error,
                )
            self._held = stamp, state, solved
        return self._held[1:]

    def _solve(self, records: Sequence[EditRecord]) -> EditSet:
        return EditSet(records, self._manifest.slots, self._manifest.shape, self._config)

    def _stamp(self) -> _Stamp | None:
        try:
            status = self._journal.path.lstat()
        except OSError:
            self._held = None  # reading says what is wrong
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns
