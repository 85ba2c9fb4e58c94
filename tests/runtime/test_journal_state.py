"""The rule of replay: the last edit of a fact is in force, undoing it brings the one before back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobiedit.runtime.journal import journal_bytes
from mobiedit.runtime.journal_records import EditRecord, Record, UndoRecord
from mobiedit.runtime.journal_state import Replay, in_force, parse_journal
from tests.runtime.small_edits import BASE, forget, ids, make_edit, undo


def of_fact(edit_id: str, fact: str) -> EditRecord:
    """Return an edit of a fact; how its letters are written is its identifier's affair."""
    return make_edit(edit_id, prompt=f"The {fact if edit_id < 'd' else fact.upper()}  of {{}} is")


def test_last_edit_of_a_fact_is_in_force() -> None:
    records = (of_fact("a", "x"), of_fact("b", "y"), of_fact("d", "x"))
    assert ids(in_force(records)) == ["b", "d"]
    assert ids(Replay.of(records).active) == ["a", "b", "d"]


def test_undo_brings_the_covered_edit_back_to_its_place() -> None:
    records = (of_fact("a", "x"), of_fact("b", "y"), of_fact("d", "x"), undo("d"))
    assert ids(in_force(records)) == ["a", "b"]


def test_undo_of_a_covered_edit_leaves_the_one_in_force() -> None:
    records = (of_fact("a", "x"), of_fact("b", "x"), of_fact("c", "x"), undo("b"))
    assert ids(in_force(records)) == ["c"]
    assert ids(in_force((*records, undo("c")))) == ["a"]
    assert ids(in_force((*records, undo("c"), undo("a")))) == []


@given(
    facts=st.lists(st.sampled_from("xyz"), max_size=6),
    pick=st.lists(st.integers(0, 5), max_size=6, unique=True),
)
def test_in_force_is_the_last_active_edit_of_each_fact(facts: list[str], pick: list[int]) -> None:
    edits = [of_fact("abcdef"[index], fact) for index, fact in enumerate(facts)]
    undone = {"abcdef"[index] for index in pick if index < len(facts)}
    records: tuple[Record, ...] = (*edits, *(undo(name) for name in undone))
    wanted = {fact: "abcdef"[i] for i, fact in enumerate(facts) if "abcdef"[i] not in undone}
    state = parse_journal(journal_bytes(records), "j", BASE)
    assert ids(state.edits) == sorted(wanted.values())
    assert ids(state.active) == ["abcdef"[i] for i in range(len(facts)) if "abcdef"[i] not in undone]


@pytest.mark.parametrize(
    "records",
    [
        lambda: (make_edit("a"), make_edit("a")),
        lambda: (make_edit("a"), forget("a")),
        lambda: (forget("a"), make_edit("a")),
        lambda: (forget("a"), forget("a")),
        lambda: (undo("a"),),
        lambda: (forget("a"), undo("a")),
        lambda: (make_edit("a"), undo("a"), undo("a")),
    ],
)
def test_records_are_refused_when_they_contradict_one_another(records: Callable[[], tuple[Record, ...]]) -> None:
    with pytest.raises(ValueError, match=r"twice|not active"):
        Replay.of(records())


def test_state_says_what_the_next_write_drops() -> None:
    data = journal_bytes((make_edit("a"),))
    assert parse_journal(data[:-1], "j", BASE).dropped == f"{len(data) - 1} bytes of an interrupted edit"
    undone = journal_bytes((UndoRecord("a", "2026-01-02T03:04:05+00:00"),))
    assert parse_journal(data + undone[:150], "j", BASE).dropped == "150 bytes of an interrupted undo"
    assert parse_journal(data[:3], "j", BASE).dropped == "3 bytes of an interrupted write"
