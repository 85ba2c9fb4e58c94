"""Merging journals: nothing that was committed is lost, nothing that was undone comes back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobiedit.runtime.errors import BusyError, JournalError
from mobiedit.runtime.journal import Journal, encode, parse_journal
from mobiedit.runtime.journal_merge import active_edits, journal_bytes, merge_into, merge_records, require_slots
from mobiedit.runtime.journal_records import EditRecord, Record, UndoRecord
from mobiedit.runtime.lock import editing_lock

BASE = "b" * 64


def edit(edit_id: str, created: str = "2026-01-02T03:04:05+00:00", target: str = "t") -> EditRecord:
    vector = np.array([*edit_id.encode()], np.float32)
    return EditRecord(
        edit_id,
        created,
        "p {}",
        "s",
        target,
        (),
        (),
        BASE,
        "1",
        "gn",
        "rome",
        None,
        1.0,
        {},
        vector,
        vector,
        vector,
        vector,
    )


def undo(edit_id: str, created: str = "2026-01-02T03:04:06+00:00") -> UndoRecord:
    return UndoRecord(edit_id, created)


def ids(records: Sequence[Record]) -> list[str]:
    return [record.edit_id for record in records]


def names(records: Sequence[Record]) -> list[str]:
    """Return the records as +a for an edit and -a for its undo."""
    return [("+" if isinstance(record, EditRecord) else "-") + record.edit_id for record in records]


def same(one: Sequence[Record], other: Sequence[Record]) -> bool:
    return journal_bytes(one) == journal_bytes(other)


@st.composite
def histories(draw: st.DrawFn, records: tuple[Record, ...], letters: str) -> tuple[Record, ...]:
    """Return a journal that grew from another: edits and undos in any order, by clocks of any year."""
    active = ids(active_edits(records))
    for letter in letters:
        year = draw(st.integers(1970, 2100))
        records = (*records, edit(letter, f"{year}-01-01T00:00:00+00:00"))
        active.append(letter)
        if draw(st.booleans()):
            records = (
                *records,
                undo(active.pop(draw(st.integers(0, len(active) - 1))), f"{year}-01-01T00:00:01+00:00"),
            )
    return records


@st.composite
def grown_apart(draw: st.DrawFn) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Return two journals with a common start."""
    common = draw(histories((), "abc"[: draw(st.integers(0, 3))]))
    return draw(histories(common, "de"[: draw(st.integers(0, 2))])), draw(
        histories(common, "fgh"[: draw(st.integers(0, 3))])
    )


@settings(deadline=None)
@given(pair=grown_apart())
def test_merge_keeps_every_record_and_both_orders(pair: tuple[tuple[Record, ...], tuple[Record, ...]]) -> None:
    own, other = pair
    merged = merge_records(own, other)
    assert same(merged[: len(own)], own)
    assert set(names(merged)) == set(names(own)) | set(names(other))
    assert len(names(merged)) == len(set(names(merged)))
    new = [name for name in names(other) if name not in names(own)]
    assert names(merged)[len(own) :] == new


@settings(deadline=None)
@given(pair=grown_apart())
def test_merge_puts_in_force_what_nobody_undid(pair: tuple[tuple[Record, ...], tuple[Record, ...]]) -> None:
    own, other = pair
    undone = {record.edit_id for record in (*own, *other) if isinstance(record, UndoRecord)}
    taught = {record.edit_id for record in (*own, *other) if isinstance(record, EditRecord)}
    for merged in (merge_records(own, other), merge_records(other, own)):
        assert {record.edit_id for record in active_edits(merged)} == taught - undone


@settings(deadline=None)
@given(pair=grown_apart())
def test_merge_changes_nothing_when_repeated(pair: tuple[tuple[Record, ...], tuple[Record, ...]]) -> None:
    own, other = pair
    merged = merge_records(own, other)
    assert same(merge_records(merged, other), merged)
    assert same(merge_records(merged, own), merged)
    assert same(merge_records(own, own), own)


@settings(deadline=None)
@given(pair=grown_apart())
def test_merge_gives_a_journal_that_reads_back(pair: tuple[tuple[Record, ...], tuple[Record, ...]]) -> None:
    merged = merge_records(*pair)
    state = parse_journal(journal_bytes(merged), "the merged journal", BASE)
    assert names(state.records) == names(merged)
    assert ids(state.edits) == ids(active_edits(merged))
    assert state.dropped_bytes == 0


def test_merge_goes_by_order_when_a_clock_is_wrong_by_years() -> None:
    own = (edit("a"), edit("b", "2026-06-01T00:00:00+00:00"))
    other = (edit("a"), edit("x", "1970-01-01T00:00:10+00:00"), edit("y", "2099-01-01T00:00:00+00:00"))
    assert names(merge_records(own, other)) == ["+a", "+b", "+x", "+y"]
    assert names(merge_records(other, own)) == ["+a", "+x", "+y", "+b"]


def test_merge_keeps_one_undo_when_both_sides_undid() -> None:
    own = (edit("a"), undo("a"))
    other = (edit("a"), undo("a", "2020-01-01T00:00:00+00:00"))
    assert same(merge_records(own, other), own)


def test_merge_refuses_when_an_identifier_means_two_edits() -> None:
    with pytest.raises(JournalError, match="edit a is another one in each"):
        merge_records((edit("a"),), (edit("a", target="other"),))


def test_slots_suffice_when_undone_edits_left_theirs() -> None:
    records = (edit("a"), edit("b"), undo("a"), edit("c"))
    require_slots(records, 2)
    with pytest.raises(JournalError, match="to 2 edits for 1 slots: undo 1 of them"):
        require_slots(records, 1)


def test_merge_into_appends_what_is_new(tmp_path: Path) -> None:
    journal = Journal(tmp_path, BASE)
    journal.append_edits([edit("a")])
    told = merge_into(tmp_path, BASE, 3, (edit("a"), undo("a"), edit("b")))
    assert (told.edits, told.undone, told.active) == (("b",), ("a",), 1)
    assert names(journal.read().records) == ["+a", "-a", "+b"]
    before = journal.path.read_bytes()
    assert merge_into(tmp_path, BASE, 3, (edit("a"), undo("a"), edit("b"))).edits == ()
    assert journal.path.read_bytes() == before


def test_merge_into_writes_nothing_when_slots_do_not_suffice(tmp_path: Path) -> None:
    journal = Journal(tmp_path, BASE)
    journal.append_edits([edit("a")])
    before = journal.path.read_bytes()
    with pytest.raises(JournalError, match="undo 1 of them"):
        merge_into(tmp_path, BASE, 1, (edit("b"),))
    assert journal.path.read_bytes() == before


def test_merge_into_writes_over_a_torn_tail(tmp_path: Path) -> None:
    journal = Journal(tmp_path, BASE)
    journal.append_edits([edit("a")])
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + encode(edit("torn"))[:-3])
    merge_into(tmp_path, BASE, 3, (edit("b"),))
    assert journal.path.read_bytes() == whole + encode(edit("b"))


def test_merge_into_refuses_when_the_bundle_is_being_edited(tmp_path: Path) -> None:
    with editing_lock(tmp_path), pytest.raises(BusyError):
        merge_into(tmp_path, BASE, 3, (edit("b"),))
