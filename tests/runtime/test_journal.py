"""The journal's file: appended to, written anew, whatever the disk does."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mobiedit.runtime.errors import BundleError, JournalError
from mobiedit.runtime.journal import Journal
from mobiedit.runtime.journal_records import new_edit_id
from mobiedit.runtime.journal_state import JournalState, read_journal
from mobiedit.runtime.lock import editing_lock
from tests.runtime.small_edits import BASE, ends_of, ids, make_edit, names, small_journal

POSIX = pytest.mark.skipif(os.name != "posix", reason="permissions and limits are of POSIX")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A journal of a, b, the undo of a, and the batch of c and d."""
    return small_journal(tmp_path)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_read_is_empty_when_file_is_missing(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "journal", BASE) == JournalState((), (), 0, 0)


def test_read_gives_active_edits_in_order_when_one_was_undone(journal: Journal) -> None:
    state = journal.read()
    assert ids(state.edits) == ["b", "c", "d"]
    assert names(state.records) == ["+a", "+b", "-a", "+c", "+d"]
    assert (state.valid_bytes, state.dropped_bytes) == (journal.path.stat().st_size, 0)


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


def test_append_drops_the_torn_tail_and_says_so(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    data = journal.path.read_bytes()
    start = ends_of(data)[-2]
    journal.path.write_bytes(data[:-7])
    with caplog.at_level(logging.WARNING):
        journal.append_edits((make_edit("e"),))
    assert ids(journal.read().edits) == ["b", "e"]
    assert journal.path.read_bytes()[:start] == data[:start]
    assert f"dropping {len(data) - 7 - start} bytes of an interrupted edit" in caplog.text


def test_append_keeps_former_bytes_when_it_adds(journal: Journal) -> None:
    data = journal.path.read_bytes()
    journal.append_undo("b")
    assert journal.path.read_bytes().startswith(data)
    assert ids(journal.read().edits) == ["c", "d"]


def test_append_creates_folder_when_bundle_has_no_edits(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "edits", BASE)
    journal.append_edits((make_edit("a"),))
    assert ids(journal.read().edits) == ["a"]


@POSIX
def test_journal_and_all_beside_it_are_private(tmp_path: Path) -> None:
    former = os.umask(0)
    try:
        with editing_lock(tmp_path / "edits"):
            journal = small_journal(tmp_path / "edits")
            journal.forget("b")
    finally:
        os.umask(former)
    assert mode(tmp_path / "edits") == 0o700
    assert {path.name: mode(path) for path in journal.path.parent.iterdir()} == {"journal": 0o600, "lock": 0o600}


def test_append_writes_one_frame_when_edits_are_taught_at_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path, BASE)
    journal.append_edits([make_edit(name) for name in "abc"])
    assert len(ends_of(journal.path.read_bytes())) == 2
    journal.append_edits(())
    assert ids(journal.read().edits) == ["a", "b", "c"]


def test_append_writes_the_file_anew_when_edits_are_too_many_for_a_frame(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobiedit.runtime.journal_format.MAX_PAYLOAD", 2000)
    journal.append_edits([make_edit(name) for name in "efghi"])
    assert ids(journal.read().edits) == list("bcdefghi")
    assert len(ends_of(journal.path.read_bytes())) == 11


def test_append_edits_refuses_when_base_is_another(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="belongs to another model"):
        Journal(tmp_path, "c" * 64).append_edits((make_edit("a"),))


@pytest.mark.parametrize("edit_id", ["a", "b"])
def test_append_edits_refuses_when_identifier_was_ever_used(journal: Journal, edit_id: str) -> None:
    with pytest.raises(JournalError, match="in the journal already"):
        journal.append_edits((make_edit("new"), make_edit(edit_id)))
    assert "new" not in ids(journal.read().records)


def test_append_edits_refuses_when_the_edit_was_forgotten(journal: Journal) -> None:
    journal.forget("b")
    with pytest.raises(JournalError, match="edit b was forgotten here; teach it again"):
        journal.append_edits((make_edit("b"),))


def test_append_edits_writes_nothing_when_report_is_not_json(journal: Journal) -> None:
    data = journal.path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        journal.append_edits((make_edit("x"), replace(make_edit("y"), report={"loss": float("nan")})))
    assert journal.path.read_bytes() == data


def test_append_undo_lists_active_edits_when_identifier_is_not_one(journal: Journal) -> None:
    with pytest.raises(JournalError, match="no active edit 'a'; name one of: b, c, d"):
        journal.append_undo("a")


def test_append_undo_says_so_when_there_are_no_edits(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="there is nothing to undo"):
        Journal(tmp_path, BASE).append_undo("a")


def test_undo_takes_a_covered_edit(journal: Journal) -> None:
    journal.append_edits((make_edit("e", prompt="the B of {} is"),))
    assert ids(journal.read().edits) == ["c", "d", "e"]
    journal.append_undo("b")
    journal.append_undo("e")
    assert ids(journal.read().edits) == ["c", "d"]


@pytest.mark.parametrize(("edit_id", "left"), [("a", ["+b", "+c", "+d", "!a"]), ("c", ["+a", "+b", "-a", "+d", "!c"])])
def test_forget_leaves_a_tombstone_alone(journal: Journal, edit_id: str, left: list[str]) -> None:
    told = journal.forget(edit_id)
    assert (told.edit_id, told.back) == (edit_id, None)
    assert names(journal.read().records) == left


def test_forget_brings_back_what_the_edit_covered(journal: Journal) -> None:
    journal.append_edits((make_edit("e", prompt="the B of {} is"),))
    assert journal.forget("e").back == "b"
    assert ids(journal.read().edits) == ["b", "c", "d"]


def test_forget_does_no_harm_when_it_is_repeated(journal: Journal) -> None:
    first = journal.forget("b")
    data = journal.path.read_bytes()
    assert journal.forget("b") == first
    assert journal.path.read_bytes() == data


def test_forget_refuses_when_there_never_was_such_an_edit(journal: Journal, tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="no edit 'x'; name one of: a, b, c, d"):
        journal.forget("x")
    with pytest.raises(JournalError, match="there is nothing to forget"):
        Journal(tmp_path / "none", BASE).forget("x")


def test_next_write_removes_what_killed_writers_left(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    folder = journal.path.parent
    for name in (".0123456789abcdef.tmp", ".journal.new", "notes.tmp"):
        (folder / name).write_bytes(b"secret")
    with caplog.at_level(logging.WARNING):
        journal.append_undo("b")
    assert sorted(path.name for path in folder.iterdir()) == ["journal", "notes.tmp"]
    assert "forget again what is still listed" in caplog.text


LIMITED = """
import resource, sys
from pathlib import Path
from mobiedit.runtime.errors import StorageError
from mobiedit.runtime.journal import Journal
journal = Journal(Path(sys.argv[1]), sys.argv[2])
limit = int(journal.path.stat().st_size * float(sys.argv[3]))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    getattr(journal, sys.argv[4])("b")
except StorageError as error:
    print(error)
"""


@POSIX
@pytest.mark.parametrize(("share", "action"), [("1.02", "append_undo"), ("0.5", "forget")])
def test_write_leaves_the_journal_when_file_size_is_limited(journal: Journal, share: str, action: str) -> None:
    data = journal.path.read_bytes()
    command = [sys.executable, "-c", LIMITED, str(journal.path.parent), BASE, share, action]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "the file-size limit is reached" in output
    assert journal.path.read_bytes() == data
    assert [path.name for path in journal.path.parent.iterdir()] == ["journal"]


def test_new_edit_id_is_eight_hex_digits_when_asked() -> None:
    assert len(bytes.fromhex(new_edit_id())) == 4
