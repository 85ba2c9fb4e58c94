"""The journal's bytes: crashes at any byte, damage at any byte, any bytes at all."""

from __future__ import annotations

import json
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save

from mobiedit.runtime.errors import JournalError
from mobiedit.runtime.journal import journal_bytes
from mobiedit.runtime.journal_format import MAX_PAYLOAD, encode, torn_kind
from mobiedit.runtime.journal_records import EditRecord, Record
from mobiedit.runtime.journal_state import JournalState, in_force, parse_journal
from tests.runtime.small_edits import (
    BASE,
    CREATED,
    ends_of,
    forget,
    frame_of,
    ids,
    make_edit,
    names,
    same,
    small_journal,
    undo,
)

VECTORS = ("key", "value", "delta", "direction")
CONTENT = {
    "kind": "edit",
    "edit_id": "hostile",
    "created": CREATED,
    "prompt": "p",
    "subject": "s",
    "target": "t",
    "paraphrases": [],
    "keep": [],
    "base_sha256": BASE,
    "tool_version": "1",
    "optimizer": "zo",
    "method": "rome",
    "gate": None,
    "batch": None,
    "leverage": 2.0,
    "report": {},
}


def frame(*contents: object, vectors: dict[str, NDArray[Any]] | None = None) -> bytes:
    """Return a frame of records as JSON; the vectors are the first one's."""
    named = {f"0.{name}": vector for name, vector in (vectors or {}).items()}
    return frame_of(save(named, metadata={"records": json.dumps(list(contents))}))


def vectors(**changes: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {name: np.ones(2, np.float32) for name in VECTORS} | changes


def parse(data: bytes) -> JournalState:
    return parse_journal(data, "the journal", BASE)


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    """A journal of a, b, the undo of a, and the batch of c and d."""
    return small_journal(tmp_path).path.read_bytes()


FACTS = st.text(st.characters(), max_size=9)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
REPORTS = st.dictionaries(FACTS, st.none() | st.booleans() | st.integers() | FACTS | FLOATS, max_size=3)


@st.composite
def journals(draw: st.DrawFn, letters: str = "abcde") -> tuple[Record, ...]:
    """Return the records of a journal: edits, undos and tombstones."""
    records: list[Record] = []
    for letter in letters[: draw(st.integers(0, len(letters)))]:
        if draw(st.booleans()) and draw(st.booleans()):
            records.append(forget(letter))
            continue
        vector = np.array(draw(st.lists(FLOATS, min_size=1, max_size=4)), np.float32)
        records.append(
            make_edit(
                letter,
                prompt=draw(FACTS) + "{}",
                subject=draw(FACTS),
                target=draw(FACTS),
                paraphrases=tuple(draw(st.lists(FACTS, max_size=2))),
                report=draw(REPORTS),
                key=vector,
                direction=vector[::-1],
            )
        )
        if draw(st.booleans()):
            records.append(undo(letter))
    return tuple(records)


@settings(deadline=None)
@given(records=journals(), batch=st.booleans())
def test_records_are_the_same_when_they_were_written_and_read(records: tuple[Record, ...], batch: bool) -> None:
    data = (encode(records) if records else b"") if batch else journal_bytes(records)
    state = parse(data)
    assert len(state.records) == len(records)
    assert all(map(same, state.records, records))
    assert (state.valid_bytes, state.dropped_bytes) == (len(data), 0)


@settings(deadline=None, max_examples=30)
@given(records=journals("abc"))
def test_journal_gives_whole_frames_alone_when_it_is_cut_at_any_byte(records: tuple[Record, ...]) -> None:
    data = journal_bytes(records)
    ends = ends_of(data)
    for length in range(len(data)):
        state = parse(data[:length])
        count = sum(end <= length for end in ends) - 1
        assert all(map(same, state.records, records[:count]))
        assert (len(state.records), state.valid_bytes, state.dropped_bytes) == (
            count,
            ends[count],
            length - ends[count],
        )
        assert ids(state.edits) == ids(in_force(records[:count]))


@settings(deadline=None)
@given(one=journals("abc"), other=journals("def"))
def test_two_journals_in_one_file_are_read_as_one(one: tuple[Record, ...], other: tuple[Record, ...]) -> None:
    state = parse(journal_bytes(one) + journal_bytes(other))
    assert names(state.records) == names((*one, *other))
    if any(isinstance(record, EditRecord) for record in one):
        with pytest.raises(JournalError, match="is there twice"):
            parse(journal_bytes(one) * 2)


def test_cut_of_a_batch_gives_none_of_it(data: bytes) -> None:
    start, end = ends_of(data)[-2:]
    for length in range(start, end):
        assert names(parse(data[:length]).records) == ["+a", "+b", "-a"]
    assert names(parse(data).records) == ["+a", "+b", "-a", "+c", "+d"]


def test_tail_is_dropped_when_its_end_was_never_written(data: bytes) -> None:
    start = ends_of(data)[-2]
    for length in range(start, len(data) - 1):
        state = parse(data[:length] + bytes(len(data) - length))
        assert (ids(state.edits), state.valid_bytes) == (["b"], start)


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_flip_of_any_byte_changes_no_edit(data: bytes, flip: int) -> None:
    """It is an error of one line that names the journal, or the last frame is left out as torn."""
    records, start = parse(data).records, ends_of(data)[-2]
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= flip
        try:
            state = parse(bytes(damaged))
        except JournalError as error:
            message = str(error)
            assert "the journal is damaged at byte" in message
            assert "\n" not in message
            continue
        assert place >= start
        assert len(state.records) == 3
        assert all(map(same, state.records, records))
        assert state.dropped_bytes == len(data) - start


def test_damage_names_offset_and_remedy_when_it_is_in_the_middle(data: bytes) -> None:
    ends, damaged = ends_of(data), bytearray(data)
    damaged[ends[1] + 100] ^= 1
    with pytest.raises(JournalError, match=f"damaged at byte {ends[1]} .*; restore it from a backup, or cut it to"):
        parse(bytes(damaged))


def test_journal_is_refused_when_its_two_last_frames_are_damaged(data: bytes) -> None:
    ends, damaged = ends_of(data), bytearray(data)
    damaged[ends[-3]] ^= 1
    damaged[ends[-1] - 1] ^= 1
    with pytest.raises(JournalError, match="records follow"):
        parse(bytes(damaged))


def test_journal_is_refused_when_the_last_length_is_over_the_limit(data: bytes) -> None:
    with pytest.raises(JournalError, match="wrong length"):
        parse(data + struct.pack("<4sI", b"MEJ1", MAX_PAYLOAD + 1) + bytes(32))


@pytest.mark.parametrize("record", [make_edit("x"), undo("a"), forget("z")])
def test_torn_tail_tells_its_kind_when_its_header_is_there(data: bytes, record: Record) -> None:
    torn, kind = encode((record,)), {"+": "edit", "-": "undo", "!": "forget"}[names((record,))[0][0]]
    assert parse(data + torn[:150]).torn_kind == kind
    assert parse(data + torn[:40]).torn_kind is None
    assert parse(data).torn_kind is None


def test_torn_kind_is_not_taken_from_a_prompt() -> None:
    lying = make_edit("x", prompt='"records":"[{\\"kind\\": \\"undo\\" {}')
    assert torn_kind(encode((lying,))[:-1]) == "edit"


@settings(deadline=None)
@given(data=st.binary())
def test_journal_gives_no_edit_when_it_is_any_bytes(data: bytes) -> None:
    assert parse(data).dropped_bytes == len(data)


@settings(deadline=None)
@given(payload=st.one_of(st.binary(), st.binary().map(lambda header: struct.pack("<Q", len(header)) + header)))
def test_journal_is_refused_when_a_payload_is_any_bytes(payload: bytes) -> None:
    with pytest.raises(JournalError, match="damaged at byte 0"):
        parse(frame_of(payload))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(sorted(CONTENT)) | st.text(), inner),
    max_leaves=5,
)


@settings(deadline=None)
@given(
    key=st.sampled_from(sorted(set(CONTENT) - {"report", "gate", "batch", "leverage", "paraphrases", "keep"})),
    value=JSON.filter(lambda value: not isinstance(value, str)),
)
def test_journal_is_refused_when_a_text_is_any_other_json(key: str, value: object) -> None:
    with pytest.raises(JournalError, match="damaged at byte 0"):
        parse(frame(CONTENT | {key: value}, vectors=vectors()))


@settings(deadline=None)
@given(content=JSON)
def test_journal_is_refused_when_a_record_is_any_json(content: object) -> None:
    with pytest.raises(JournalError, match="damaged at byte 0"):
        parse(frame(content))


UNDO = {"kind": "undo", "edit_id": "unknown", "created": CREATED}


@pytest.mark.parametrize(
    "bad",
    [
        frame(CONTENT, vectors=vectors(key=np.ones(2, np.float64))),
        frame(CONTENT, vectors=vectors(key=np.ones((2, 1), np.float32))),
        frame(CONTENT, vectors=vectors(key=np.ones((), np.float32))),
        frame(CONTENT, vectors=vectors(key=np.ones(0, np.float32), direction=np.ones(0, np.float32))),
        frame(CONTENT, vectors=vectors(key=np.ones(3, np.float32))),
        frame(CONTENT, vectors=vectors(delta=np.ones(3, np.float32))),
        frame(CONTENT, vectors=vectors(value=np.array([1, np.nan], np.float32))),
        frame(CONTENT, vectors=vectors(value=np.array([1, np.inf], np.float32))),
        frame(CONTENT, vectors=vectors(extra=np.ones(2, np.float32))),
        frame(CONTENT, vectors={"key": np.ones(2, np.float32)}),
        frame(CONTENT),
        frame(CONTENT, CONTENT | {"edit_id": "other"}, vectors=vectors()),
        frame(CONTENT | {"extra": 1}, vectors=vectors()),
        frame(CONTENT | {"kind": "redo"}, vectors=vectors()),
        frame(CONTENT | {"edit_id": "two\nlines"}, vectors=vectors()),
        frame(CONTENT | {"created": "yesterday"}, vectors=vectors()),
        frame(CONTENT | {"created": "2026-01-02T03:04:05"}, vectors=vectors()),
        frame(CONTENT | {"created": "2026-01-02T03:04:05+01:00"}, vectors=vectors()),
        frame(CONTENT | {"report": []}, vectors=vectors()),
        frame(CONTENT | {"report": {"loss": float("nan")}}, vectors=vectors()),
        frame(),
        frame({}),
        frame(UNDO),
        frame(UNDO | {"edit_id": "a"}),
        frame({"kind": "forget", "edit_id": "a", "created": CREATED}),
        frame({"kind": "forget", "edit_id": "z", "created": CREATED, "subject": "France"}),
        frame(*[{"kind": "forget", "edit_id": "z", "created": CREATED}] * 2),
        frame(CONTENT | {"edit_id": "b"}, vectors=vectors()),
        frame(CONTENT | {"edit_id": "a"}, vectors=vectors()),
        frame_of(save({}, metadata={"records": "[" * 100_000})),
        frame_of(save({}, metadata={"records": "{}"})),
        frame_of(save({}, metadata={})),
        frame_of(save({})),
        frame_of(b""),
    ],
)
def test_journal_is_refused_when_a_checksum_is_right_but_the_record_is_not(data: bytes, bad: bytes) -> None:
    with pytest.raises(JournalError, match=f"damaged at byte {len(data)} "):
        parse(data + bad)


def test_encode_refuses_when_a_record_is_over_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[encode.__module__], "MAX_PAYLOAD", 2000)
    with pytest.raises(JournalError, match="of at most 2000; shorten its prompt"):
        encode((make_edit("d", prompt="p" * 2000),))


def test_encode_refuses_when_a_report_is_not_json() -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode((replace(make_edit("d"), report={"loss": float("nan")}),))
