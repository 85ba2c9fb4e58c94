"""The journal: crashes at any byte, damage at any byte, full disks."""

import errno
import hashlib
import json
import logging
import os
import stat
import struct
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save

from mobiedit.runtime.errors import BundleError, JournalError, StorageError
from mobiedit.runtime.journal import (
    MAX_PAYLOAD,
    Journal,
    JournalState,
    read_journal,
)
from mobiedit.runtime.journal_records import EditRecord, Record, UndoRecord, new_edit_id

BASE = "b" * 64
VECTORS = ("key", "value", "delta", "direction")
CONTENT = {
    "kind": "edit",
    "edit_id": "hostile",
    "created": "2026-01-02T03:04:05+00:00",
    "prompt": "p",
    "subject": "s",
    "target": "t",
    "paraphrases": [],
    "keep": [],
    "base_sha256": BASE,
    "tool_version": "1",
    "optimizer": "zo",
    "method": "rome",
    "batch": None,
    "leverage": 2.0,
    "report": {},
}


def make_edit(edit_id: str, prompt: str = "The capital of X is") -> EditRecord:
    rng = np.random.default_rng(list(edit_id.encode()))
    key, direction = (rng.standard_normal(3).astype(np.float32) for _ in range(2))
    value, delta = (rng.standard_normal(2).astype(np.float32) for _ in range(2))
    content = CONTENT | {"edit_id": edit_id, "prompt": prompt, "report": {"steps": [1, 0.5, None]}}
    del content["kind"]
    return EditRecord(**content, key=key, value=value, delta=delta, direction=direction)  # type: ignore[arg-type]


def frame(content: dict[str, Any], vectors: dict[str, NDArray[Any]] | None = None) -> bytes:
    """Return a frame whose checksum is right, whatever it holds."""
    return frame_of(save(vectors or {}, metadata={"record": json.dumps(content)}))


def frame_of(payload: bytes) -> bytes:
    return struct.pack("<4sI32s", b"MEJ1", len(payload), hashlib.sha256(payload).digest()) + payload


def vectors(**changes: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {name: np.ones(2, np.float32) for name in VECTORS} | changes


def same(one: Record, other: Record) -> bool:
    return type(one) is type(other) and all(
        np.array_equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)
    )


def ids(state: JournalState) -> list[str]:
    return [edit.edit_id for edit in state.edits]


def active_ids(records: list[Record] | tuple[Record, ...]) -> list[str]:
    undone = {record.edit_id for record in records if isinstance(record, UndoRecord)}
    return [record.edit_id for record in records if isinstance(record, EditRecord) and record.edit_id not in undone]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """Return a journal of a, b, the undo of a, and c, whose prompt looks like the start of a frame."""
    journal = Journal(tmp_path, BASE)
    journal.append_edits([make_edit("a")])
    journal.append_edits([make_edit("b")])
    journal.append_undo("a")
    journal.append_edits([make_edit("c", prompt="MEJ1 MEJ1\0\0\0\0 é MEJ1")])
    return journal


@pytest.fixture
def ends(journal: Journal) -> list[int]:
    """Return the length of the journal after 0, 1, ... records."""
    data, result = journal.path.read_bytes(), [0]
    while result[-1] < len(data):
        result.append(result[-1] + 40 + struct.unpack_from("<I", data, result[-1] + 4)[0])
    return result


def read_changed(journal: Journal, data: bytes) -> JournalState:
    journal.path.write_bytes(data)
    return journal.read()


def test_read_is_empty_when_file_is_missing(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "journal", BASE) == JournalState((), (), 0, 0)


def test_read_gives_active_edits_in_order_when_one_was_undone(journal: Journal) -> None:
    state = journal.read()
    assert ids(state) == ["b", "c"]
    assert [record.edit_id for record in state.records] == ["a", "b", "a", "c"]
    assert (state.valid_bytes, state.dropped_bytes) == (journal.path.stat().st_size, 0)


@settings(deadline=None)
@given(prompt=st.text(), numbers=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_read_gives_the_same_edit_when_it_was_appended(
    tmp_path_factory: pytest.TempPathFactory, prompt: str, numbers: list[float]
) -> None:
    journal = Journal(tmp_path_factory.mktemp("any"), BASE)
    vector = np.array(numbers, np.float32)
    record = replace(make_edit("a", prompt), key=vector, direction=vector[::-1])
    journal.append_edits([record])
    assert same(journal.read().edits[0], record)


def test_read_keeps_complete_records_when_tail_is_torn_at_any_byte(journal: Journal, ends: list[int]) -> None:
    data, records = journal.path.read_bytes(), journal.read().records
    for length in range(len(data)):
        state = read_changed(journal, data[:length])
        count = sum(end <= length for end in ends) - 1
        assert len(state.records) == count
        assert all(map(same, state.records, records))
        assert ids(state) == active_ids(records[:count])
        assert (state.valid_bytes, state.dropped_bytes) == (ends[count], length - ends[count])


def test_read_keeps_complete_records_when_tail_was_never_written(journal: Journal, ends: list[int]) -> None:
    data = journal.path.read_bytes()
    for length in range(ends[-2], ends[-1] - 1):
        state = read_changed(journal, data[:length] + bytes(len(data) - length))
        assert (ids(state), state.valid_bytes) == (["b"], ends[-2])


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_read_never_gives_a_changed_edit_when_any_byte_flips(journal: Journal, ends: list[int], flip: int) -> None:
    data, records = journal.path.read_bytes(), journal.read().records
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= flip
        try:
            state = read_changed(journal, bytes(damaged))
        except JournalError:
            continue
        assert place >= ends[-2]
        assert len(state.records) == len(records) - 1
        assert all(map(same, state.records, records))


def test_read_names_offset_and_remedy_when_the_middle_is_damaged(journal: Journal, ends: list[int]) -> None:
    data = bytearray(journal.path.read_bytes())
    data[ends[1] + 100] ^= 1
    with pytest.raises(JournalError, match=f"damaged at byte {ends[1]} .*; restore it from a backup, or cut it to"):
        read_changed(journal, bytes(data))


def test_read_refuses_when_two_last_records_are_damaged(journal: Journal, ends: list[int]) -> None:
    data = bytearray(journal.path.read_bytes())
    data[ends[-3]] ^= 1
    data[ends[-1] - 1] ^= 1
    with pytest.raises(JournalError, match="records follow"):
        read_changed(journal, bytes(data))


def test_read_refuses_when_last_length_is_over_the_limit(journal: Journal) -> None:
    data = journal.path.read_bytes() + struct.pack("<4sI", b"MEJ1", MAX_PAYLOAD + 1) + bytes(32)
    with pytest.raises(JournalError, match="wrong length"):
        read_changed(journal, data)


def test_read_refuses_when_file_is_a_link(journal: Journal) -> None:
    moved = journal.path.rename(journal.path.with_name("moved"))
    try:
        journal.path.symlink_to(moved)
    except OSError:
        pytest.skip("this user may not make links")
    with pytest.raises(BundleError, match="is a link"):
        journal.read()


def test_read_refuses_when_base_is_another(journal: Journal) -> None:
    with pytest.raises(JournalError, match=r"edit a belongs to another model .*; use the bundle it was made for"):
        read_journal(journal.path, "c" * 64)


@settings(deadline=None)
@given(data=st.binary())
def test_read_gives_no_edit_when_file_is_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "journal"
    path.write_bytes(data)
    assert read_journal(path, BASE).dropped_bytes == len(data)


@settings(deadline=None)
@given(payload=st.one_of(st.binary(), st.binary().map(lambda header: struct.pack("<Q", len(header)) + header)))
def test_read_refuses_when_payload_is_any_bytes(tmp_path_factory: pytest.TempPathFactory, payload: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "journal"
    path.write_bytes(frame_of(payload))
    with pytest.raises(JournalError, match="damaged at byte 0"):
        read_journal(path, BASE)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(sorted(CONTENT)) | st.text(), inner),
    max_leaves=5,
)


@settings(deadline=None)
@given(
    key=st.sampled_from(sorted(set(CONTENT) - {"report", "batch", "leverage", "paraphrases", "keep"})),
    value=JSON.filter(lambda value: not isinstance(value, str)),
)
def test_read_refuses_when_a_text_is_any_other_json(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object
) -> None:
    path = tmp_path_factory.mktemp("any") / "journal"
    path.write_bytes(frame(CONTENT | {key: value}, vectors()))
    with pytest.raises(JournalError, match="damaged at byte 0"):
        read_journal(path, BASE)


@pytest.mark.parametrize(
    "bad",
    [
        frame(CONTENT, vectors(key=np.ones(2, np.float64))),
        frame(CONTENT, vectors(key=np.ones((2, 1), np.float32))),
        frame(CONTENT, vectors(key=np.ones((), np.float32))),
        frame(CONTENT, vectors(key=np.ones(0, np.float32), direction=np.ones(0, np.float32))),
        frame(CONTENT, vectors(key=np.ones(3, np.float32))),
        frame(CONTENT, vectors(delta=np.ones(3, np.float32))),
        frame(CONTENT, vectors(value=np.array([1, np.nan], np.float32))),
        frame(CONTENT, vectors(value=np.array([1, np.inf], np.float32))),
        frame(CONTENT, vectors(extra=np.ones(2, np.float32))),
        frame(CONTENT, {"key": np.ones(2, np.float32)}),
        frame(CONTENT),
        frame(CONTENT | {"extra": 1}, vectors()),
        frame(CONTENT | {"kind": "redo"}, vectors()),
        frame(CONTENT | {"edit_id": "two\nlines"}, vectors()),
        frame(CONTENT | {"created": "yesterday"}, vectors()),
        frame(CONTENT | {"created": "2026-01-02T03:04:05"}, vectors()),
        frame(CONTENT | {"created": "2026-01-02T03:04:05+01:00"}, vectors()),
        frame(CONTENT | {"report": []}, vectors()),
        frame({}),
        frame({"kind": "undo", "edit_id": "unknown", "created": CONTENT["created"]}),
        frame({"kind": "undo", "edit_id": "a", "created": CONTENT["created"]}),
        frame(CONTENT | {"edit_id": "b"}, vectors()),
        frame(CONTENT | {"edit_id": "a"}, vectors()),
        frame_of(save({}, metadata={"record": "[" * 100_000})),
        frame_of(save({}, metadata={"record": "[]"})),
        frame_of(save({}, metadata={})),
        frame_of(save({})),
        frame_of(b""),
    ],
)
def test_read_refuses_when_checksum_is_right_but_record_is_not(journal: Journal, bad: bytes) -> None:
    length = journal.path.stat().st_size
    with pytest.raises(JournalError, match=f"damaged at byte {length} "):
        read_changed(journal, journal.path.read_bytes() + bad)


def test_append_drops_the_torn_tail_when_there_is_one(
    journal: Journal, ends: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    data = journal.path.read_bytes()
    journal.path.write_bytes(data[: ends[-1] - 7])
    with caplog.at_level(logging.WARNING):
        journal.append_edits([make_edit("d")])
    assert ids(journal.read()) == ["b", "d"]
    assert journal.path.read_bytes()[: ends[-2]] == data[: ends[-2]]
    assert f"dropping {ends[-1] - 7 - ends[-2]} bytes" in caplog.text


def test_append_keeps_former_bytes_when_it_adds(journal: Journal) -> None:
    data = journal.path.read_bytes()
    journal.append_undo("b")
    assert journal.path.read_bytes().startswith(data)
    assert ids(journal.read()) == ["c"]


def test_append_creates_folder_when_bundle_has_no_edits(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "edits", BASE)
    journal.append_edits([make_edit("a")])
    assert ids(journal.read()) == ["a"]


@pytest.mark.skipif(os.name != "posix", reason="permissions are of POSIX")
def test_append_makes_a_private_file_when_it_is_new(journal: Journal) -> None:
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600


def test_append_edit_refuses_when_base_is_another(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="belongs to another model"):
        Journal(tmp_path, "c" * 64).append_edits([make_edit("a")])


@pytest.mark.parametrize("edit_id", ["a", "b"])
def test_append_edit_refuses_when_identifier_was_ever_used(journal: Journal, edit_id: str) -> None:
    with pytest.raises(JournalError, match="in the journal already"):
        journal.append_edits([make_edit(edit_id)])


def test_append_edit_refuses_when_record_is_over_the_limit(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[Journal.__module__], "MAX_PAYLOAD", 2000)
    with pytest.raises(JournalError, match="of at most 2000; shorten its prompt"):
        journal.append_edits([make_edit("d", prompt="p" * 2000)])


def test_append_edit_writes_nothing_when_report_is_not_json(journal: Journal) -> None:
    data = journal.path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        journal.append_edits([replace(make_edit("d"), report={"loss": float("nan")})])
    assert journal.path.read_bytes() == data


def test_append_undo_lists_active_edits_when_identifier_is_not_one(journal: Journal) -> None:
    with pytest.raises(JournalError, match="no active edit 'a'; name one of: b, c"):
        journal.append_undo("a")


def test_append_undo_says_so_when_there_are_no_edits(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="there is nothing to undo"):
        Journal(tmp_path, BASE).append_undo("a")


def test_append_leaves_the_journal_when_disk_fills_midway(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    data, write, calls = journal.path.read_bytes(), os.write, []

    def fill(descriptor: int, rest: memoryview) -> int:
        calls.append(len(rest))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "full")
        return write(descriptor, rest[: len(rest) // 2])

    monkeypatch.setattr(os, "write", fill)
    with pytest.raises(StorageError, match="free some space"):
        journal.append_edits([make_edit("d")])
    monkeypatch.undo()
    assert len(calls) == 2
    assert journal.path.read_bytes() == data


LIMITED = """
import resource, sys
from pathlib import Path
from mobiedit.runtime.errors import StorageError
from mobiedit.runtime.journal import Journal
journal = Journal(Path(sys.argv[1]), sys.argv[2])
limit = journal.path.stat().st_size + 100
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    journal.append_undo("b")
except StorageError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="RLIMIT_FSIZE is of POSIX")
def test_append_leaves_the_journal_when_file_size_is_limited(journal: Journal) -> None:
    data = journal.path.read_bytes()
    command = [sys.executable, "-c", LIMITED, str(journal.path.parent), BASE]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "the file-size limit is reached" in output
    assert journal.path.read_bytes() == data


def test_new_edit_id_is_eight_hex_digits_when_asked() -> None:
    assert len(bytes.fromhex(new_edit_id())) == 4
