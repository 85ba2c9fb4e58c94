"""What became of each record, and what it had achieved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mobiedit.runtime.history import Measured, history
from mobiedit.runtime.journal import Journal
from tests.runtime.small_edits import BASE, make_edit


def told(probability: float, greedy: bool) -> dict[str, Any]:
    return {"greedy_match": greedy, "target_prob": probability, "nll": 1.0}


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """a is replaced by c, b is undone, d is forgotten."""
    journal = Journal(tmp_path, BASE)
    journal.append_edits((make_edit("a"),))
    report = {"success_before": told(0.1, greedy=False), "success": told(0.9, greedy=True)}
    journal.append_edits((make_edit("b", report=report), make_edit("c", prompt="THE A of {} is", batch="x")))
    journal.append_undo("b")
    journal.append_edits((make_edit("d"),))
    journal.forget("d")
    return journal


def test_history_tells_the_state_of_every_record_in_order(journal: Journal) -> None:
    entries = history(journal.read())
    undone = journal.read().replay.undone["b"]
    forgotten = journal.read().replay.forgotten["d"]
    assert [(entry.kind, entry.edit_id, entry.words) for entry in entries] == [
        ("edit", "a", "replaced by c"),
        ("edit", "b", f"undone at {undone}"),
        ("edit", "c", "in force"),
        ("undo", "b", "undo of b"),
        ("forget", "d", f"forgotten at {forgotten}"),
    ]
    assert entries[2].batch == "x"
    assert entries[4].fact is None


def test_history_tells_the_fact_before_and_after(journal: Journal) -> None:
    first, second, *_ = history(journal.read())
    assert (second.before, second.after) == (Measured(0.1, False), Measured(0.9, True))
    assert (first.before, first.after) == (Measured(None, None), Measured(None, None))


@pytest.mark.parametrize(
    "success", [None, [], "x", {}, {"target_prob": "x", "greedy_match": 1}, {"target_prob": 10**400}]
)
def test_history_tells_nothing_of_a_report_of_another_form(tmp_path: Path, success: object) -> None:
    journal = Journal(tmp_path, BASE)
    journal.append_edits((make_edit("a", report={"success": success}),))
    (entry,) = history(journal.read())
    assert entry.after == Measured(None, None)
    assert entry.words == "in force"
