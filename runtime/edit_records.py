"""The journal's record of an edit that was solved."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version

from .edit_result import EditResult, SolvedEdit
from .journal_records import EditRecord
from .manifest import Manifest
from .prompt_rows import EditRequest


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
        method=solved.method.value,
        gate=solved.gate,
        batch=solved.batch,
        leverage=solved.leverage,
        report=result.to_dict(),
        key=solved.key,
        value=solved.value,
        delta=solved.search.delta,
        direction=solved.direction,
    )
