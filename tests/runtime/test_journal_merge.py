"""Merging journals: nothing that was committed is lost, nothing that was undone comes back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobiedit.runtime.errors import BusyError, JournalError
from mobiedit.runtime.journal import Journal, journal_bytes
from mobiedit.runtime.journal_format import encode
from mobiedit.runtime.journal_merge import merge_into, merge_records, require_slots
from mobiedit.runtime.journal_records import EditRecord, ForgetRecord, Record
from mobiedit.runtime.journal_state import Replay, in_force, parse_journal
from mobiedit.runtime.lock import editing_lock
from tests.runtime.small_edits import BASE, CREATED, forget, ids, make_edit, names, undo


def edit(edit_id: str, created: str = CREATED, target: str = "t", gate: float | None = 0.9) -> EditRecord:
    """Return an edit; of the letters, a and f, b and g, ... teach the same facts."""
    return make_edit(edit_id, f"p{ord(edit_id[0]) % 5} {{}}", created=created, target=target, gate=gate)


def same(one: Sequence[Record], other: Sequence[Record]) -> bool:
    return journal_bytes(one) == journal_bytes(other)


@st.composite
def histories(draw: st.DrawFn, records: tuple[Record, ...], letters: str) -> tuple[Record, ...]:
    """Return a journal that grew from another: edits, undos and forgetting in any order, by clocks of any year."""
    for letter in letters:
        year = draw(st.integers(1970, 2100))
        records = (*records, edit(letter, f"{year}-01-01T00:00:00+00:00"))
        what = draw(st.sampled_from(["teach", "undo", "forget"]))
        if what == "undo" and (active := ids(Replay.of(records).active)):
            records = (*records, undo(draw(st.sampled_from(active)), f"{year}-01-01T00:00:01+00:00"))
        elif what == "forget" and (taught := list(Replay.of(records).taught)):
            gone = draw(st.sampled_from(taught))
            left = tuple(record for record in records if record.edit_id != gone)
            records = (*left, forget(gone, f"{year}-01-01T00:00:02+00:00"))
    return records


@st.composite
def grown_apart(draw: st.DrawFn) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Return two journals with a common start."""
    common = draw(histories((), "abc"[: draw(st.integers(0, 3))]))
    return draw(histories(common, "de"[: draw(st.integers(0, 2))])), draw(
        histories(common, "fgh"[: draw(st.integers(0, 3))])
    )


def forgotten(records: Sequence[Record]) -> set[str]:
    return {record.edit_id for record in records if isinstance(record, ForgetRecord)}


@settings(deadline=None)
@given(pair=grown_apart())
def test_merge_keeps_every_record_that_nobody_forgot_and_both_orders(
    pair: tuple[tuple[Record, ...], tuple[Record, ...]],
) -> None:
    own, other = pair
    merged, gone = names(merge_records(own, other)), forgotten(own) | forgotten(other)
    wanted = [name for name in names(own) if name[0] == "!" or name[1:] not in gone]
    wanted += [name for name in names(other) if name not in names(own) and (name[0] == "!" or name[1:] not in gone)]
    assert merged == wanted


@settings(deadline=None)
@given(pair=grown_apart())
def test_merge_leaves_active_what_nobody_undid_or_forgot(pair: tuple[tuple[Record, ...], tuple[Record, ...]]) -> None:
    own, other = pair
    gone = {record.edit_id for record in (*own, *other) if not isinstance(record, EditRecord)}
    taught = {record.edit_id for record in (*own, *other) if isinstance(record, EditRecord)}
    for merged in (merge_records(own, other), merge_records(other, own)):
        assert {record.edit_id for record in Replay.of(merged).active} == taught - gone


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
    assert ids(state.edits) == ids(in_force(merged))
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


def test_other_sides_edit_is_in_force_when_both_taught_a_fact() -> None:
    own, other = (edit("a"),), (edit("f"),)
    assert ids(in_force(merge_records(own, other))) == ["f"]
    assert ids(in_force(merge_records(other, own))) == ["a"]


def test_merge_brings_no_edit_back_when_either_side_forgot_it() -> None:
    own, other = (edit("a"), undo("a"), edit("b")), (forget("a"), edit("c"))
    assert names(merge_records(own, other)) == ["+b", "!a", "+c"]
    assert names(merge_records(other, own)) == ["!a", "+c", "+b"]


def test_merge_takes_what_was_scrubbed_from_either_side() -> None:
    texts = {"keep": ("of a dentist", "kept"), "report": {"paraphrases": ["a dentist"], "steps": 1}}
    whole = make_edit("b", subject="plumber", **texts)
    dentist = make_edit("a", subject="dentist", target="Dr. Chen")
    for own, other in (((dentist, whole), (forget("a"), whole)), ((forget("a"), whole), (dentist, whole))):
        (left,) = (record for record in merge_records(own, other) if isinstance(record, EditRecord))
        assert (left.keep, left.report) == (("kept",), {"steps": 1})
        # The side that never had the dentist takes the scrubbed record over.
        again = merge_records((whole,), merge_records(own, other))
        assert b"dentist" not in journal_bytes(again)


def test_merge_refuses_when_an_identifier_means_two_edits() -> None:
    with pytest.raises(JournalError, match="edit a is another one in each"):
        merge_records((edit("a"),), (edit("a", target="other"),))


def test_slots_suffice_when_undone_edits_left_theirs() -> None:
    records = (edit("a"), edit("b"), undo("a"), edit("c"))
    require_slots(records, 2)
    with pytest.raises(JournalError, match="to 2 gated edits for 1 slots: undo 1 of them"):
        require_slots(records, 1)


def test_slots_suffice_when_edits_without_gates_can_share_them() -> None:
    require_slots((edit("a"), edit("b", gate=None), edit("c", gate=None)), 1)


def test_merge_into_appends_what_is_new(tmp_path: Path) -> None:
    journal = Journal(tmp_path, BASE)
    journal.append_edits((edit("a"),))
    told = merge_into(tmp_path, BASE, 3, (edit("a"), undo("a"), edit("b")))
    assert (told.edits, told.undone, told.forgotten, told.replaced, told.active) == (("b",), ("a",), (), (), 1)
    assert names(journal.read().records) == ["+a", "-a", "+b"]
    before = journal.path.read_bytes()
    assert merge_into(tmp_path, BASE, 3, (edit("a"), undo("a"), edit("b"))).edits == ()
    assert journal.path.read_bytes() == before


def test_merge_into_writes_the_journal_anew_when_the_other_side_forgot_an_edit(tmp_path: Path) -> None:
    journal = Journal(tmp_path, BASE)
    journal.append_edits((edit("a", target="secret"), edit("b")))
    told = merge_into(tmp_path, BASE, 3, (edit("b"), forget("a"), forget("x")))
    assert (told.edits, told.undone, told.forgotten, told.active) == ((), (), ("a",), 1)
    assert names(journal.read().records) == ["+b", "!a", "!x"]
    assert b"secret" not in journal.path.read_bytes()


def test_merge_into_tells_which_own_edits_are_replaced(tmp_path: Path) -> None:
    Journal(tmp_path, BASE).append_edits((edit("a"), edit("b")))
    told = merge_into(tmp_path, BASE, 3, (edit("f"),))
    assert (told.edits, told.replaced, told.active) == (("f",), ("a",), 2)


def test_merge_into_writes_nothing_when_slots_do_not_suffice(tmp_path: Path) -> None:
    journal = Journal(tmp_path, BASE)
    journal.append_edits((edit("a"),))
    before = journal.path.read_bytes()
    with pytest.raises(JournalError, match="undo 1 of them"):
        merge_into(tmp_path, BASE, 1, (edit("b"),))
    assert journal.path.read_bytes() == before


def test_merge_into_writes_over_a_torn_tail(tmp_path: Path) -> None:
    journal = Journal(tmp_path, BASE)
    journal.append_edits((edit("a"),))
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + encode((edit("torn"),))[:-3])
    merge_into(tmp_path, BASE, 3, (edit("b"),))
    assert journal.path.read_bytes() == whole + encode((edit("b"),))


def test_merge_into_refuses_when_the_bundle_is_being_edited(tmp_path: Path) -> None:
    with editing_lock(tmp_path), pytest.raises(BusyError):
        merge_into(tmp_path, BASE, 3, (edit("b"),))
