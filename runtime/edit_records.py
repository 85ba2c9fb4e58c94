"""Between the journal's records and the slots that hold them."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version

from .decoder import Slots
from .editor import EditResult, SolvedEdit
from .errors import JournalError
from .journal import JournalState
from .journal_records import EditRecord
from .manifest import Manifest
from .prompt_rows import EditRequest


def slots_of(state: JournalState, manifest: Manifest) -> Slots:
    """Return the slots with the journal's edits in them, in order.

    Raises
    ------
    JournalError
        When there are more edits than slots, or one is of another shape.
    """
    slots = Slots.empty(manifest.slots, manifest.shape)
    if len(state.edits) > manifest.slots:
        raise JournalError(f"the journal has {len(state.edits)} edits for {manifest.slots} slots: undo some of them")
    for index, edit in enumerate(state.edits):
        if edit.direction.shape != slots.directions[0].shape or edit.delta.shape != slots.deltas[0].shape:
            raise JournalError(f"edit {edit.edit_id} has another model's shape: undo it")
        slots.directions[index], slots.deltas[index] = edit.direction, edit.delta
    return slots


def record_of(request: EditRequest, solved: SolvedEdit, result: EditResult, manifest: Manifest) -> EditRecord:
    """Return the journal's record of an edit that is committed."""
    assert result.edit_id is not None
    return EditRecord(
        edit_id=result.edit_id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        prompt=request.prompt,
        subject=request.subject,
        target=request.target,
        paraphrases=request.paraphrases,
        keep=request.keep,
        base_sha256=manifest.edit_base,
        tool_version=version("mobiedit"),
        optimizer=result.optimizer,
        method="rome",
        batch=None,
        leverage=solved.leverage,
        report=result.to_dict(),
        key=solved.key,
        value=solved.value,
        delta=solved.search.delta,
        direction=solved.direction,
    )
