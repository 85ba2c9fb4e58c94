"""Killed at every call that touches the disk, full at every write: no edit is lost, none is there by half."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from mobiedit.runtime.edit_lines import to_lines
from mobiedit.runtime.edit_store import EditStore
from mobiedit.runtime.errors import StorageError
from mobiedit.runtime.journal import Journal
from mobiedit.runtime.journal_merge import merge_into
from mobiedit.runtime.lock import editing_lock
from tests.runtime.crashes import Cut, faults, full, killed, places
from tests.runtime.small_edits import BASE, forget, make_edit, names, same, small_journal, undo

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")

START = ["+a", "+b", "-a", "+c", "+d"]
SECRET = "Zanzibar"


@dataclass(frozen=True)
class Case:
    """An operation on a folder of edits, and the records after it."""

    run: Callable[[Path], object]
    after: list[str]
    before: tuple[str, ...] = tuple(START)
    erases: bool = False


def locked(action: Callable[[Journal], object]) -> Callable[[Path], object]:
    def run(folder: Path) -> None:
        with editing_lock(folder):
            action(Journal(folder, BASE))

    return run


def many(journal: Journal) -> None:
    journal.append_edits([make_edit(name, batch="x") for name in "efg"])


def imported(folder: Path) -> None:
    shape = SimpleNamespace(mlp_width=3, width=2)
    store = EditStore(folder.parent, SimpleNamespace(edit_base=BASE, shape=shape, slots=9))  # type: ignore[arg-type]
    store.import_lines(to_lines([make_edit(name) for name in "efg"]).encode())


CASES = {
    "first": Case(locked(lambda journal: journal.append_edits((make_edit("a"),))), ["+a"], before=()),
    "append": Case(locked(lambda journal: journal.append_edits((make_edit("e"),))), [*START, "+e"]),
    "batch": Case(locked(many), [*START, "+e", "+f", "+g"]),
    "undo": Case(locked(lambda journal: journal.append_undo("c")), [*START, "-c"]),
    "forget": Case(locked(lambda journal: journal.forget("b")), ["+a", "-a", "+c", "+d", "!b"], erases=True),
    "import": Case(imported, [*START, "+e", "+f", "+g"]),
    "merge": Case(
        lambda folder: merge_into(folder, BASE, 9, (make_edit("e"), undo("e"), make_edit("f"))),
        [*START, "+e", "-e", "+f"],
    ),
    "merge-forgotten": Case(
        lambda folder: merge_into(folder, BASE, 9, (forget("b"), make_edit("e"))),
        ["+a", "-a", "+c", "+d", "!b", "+e"],
        erases=True,
    ),
}


def prepare(folder: Path, case: Case) -> Path:
    """Return a folder of edits as it is before an operation; b holds the secret."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    edits = folder / "edits"
    if case.before:
        with editing_lock(edits):
            journal = small_journal(edits)
            data = journal.read().records
            secret = [
                make_edit("b", target=SECRET) if name == "+b" else each for name, each in zip(START, data, strict=True)
            ]
            journal.become(journal.read(), secret)
    return edits


def require_consistent(folder: Path, case: Case, acknowledged: bool) -> bool:
    """Fail unless the journal is as before or as after, and whole; return whether it is as after."""
    state = Journal(folder, BASE).read()
    found = names(state.records)
    assert found in ([case.after] if acknowledged else [list(case.before), case.after])
    wanted = {name: make_edit(name) for name in "abcdefg"}
    for edit in state.replay.taught.values():
        content = {"prompt": edit.prompt, "target": edit.target, "batch": edit.batch}
        assert same(edit, make_edit(edit.edit_id, **content))
        assert edit.target in (wanted[edit.edit_id].target, SECRET)
    return found == case.after


def require_usable(folder: Path, *, gone: bool) -> None:
    """Fail unless the next edit is committed, and what was forgotten is then in no file."""
    with editing_lock(folder):
        Journal(folder, BASE).append_edits((make_edit("z"),))
    assert names(Journal(folder, BASE).read().records)[-1] == "+z"
    assert sorted(path.name for path in folder.iterdir()) == ["journal", "lock"]
    if gone:
        assert not any(SECRET.encode() in path.read_bytes() for path in folder.iterdir())


@pytest.mark.parametrize("cut", Cut)
@pytest.mark.parametrize("name", CASES)
def test_journal_is_as_before_or_as_after_when_killed_at_any_call(tmp_path: Path, name: str, cut: Cut) -> None:
    case, place, seen = CASES[name], tmp_path / "bundle", set()
    calls = places(partial(case.run, prepare(place, case)), cut)
    assert {"replace", "rename"} & {call for _, call in calls} or not case.erases or cut is Cut.HALFWAY
    for at, _ in calls:
        folder = prepare(place, case)
        acknowledged = killed(partial(case.run, folder), at, cut)
        assert not acknowledged  # what comes behind a commit changes nothing on the disk any more
        seen.add(after := require_consistent(folder, case, acknowledged))
        if folder.exists():
            require_usable(folder, gone=case.erases and after)
    case.run(folder := prepare(place, case))
    assert require_consistent(folder, case, acknowledged=True)
    assert seen == ({False} if cut is Cut.HALFWAY else {False, True})


@pytest.mark.parametrize("name", CASES)
def test_file_and_folder_are_flushed_before_a_commit_is_told(tmp_path: Path, name: str) -> None:
    """What a kill cannot show, since the system keeps what was written: that a power cut would not lose it."""
    case = CASES[name]
    called = [call for _, call in places(partial(case.run, prepare(tmp_path / "bundle", case)), Cut.BEFORE)]
    behind = called[len(called) - called[::-1].index("write") :]
    if case.erases:
        assert behind[:4] in (["fsync", "replace", "open", "fsync"], ["fsync", "rename", "open", "fsync"])
    else:
        assert behind[:1] == ["fsync"]
        assert name != "first" or behind[:3] == ["fsync", "open", "fsync"]


@pytest.mark.parametrize("cut", Cut)
def test_forgetting_is_completed_when_it_is_repeated_after_a_kill(
    tmp_path: Path, cut: Cut, caplog: pytest.LogCaptureFixture
) -> None:
    case, place, reported = CASES["forget"], tmp_path / "bundle", 0
    for at, _ in places(partial(case.run, prepare(place, case)), cut):
        folder = prepare(place, case)
        killed(partial(case.run, folder), at, cut)
        left = Journal(folder, BASE).leftovers()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            case.run(folder)
        reported += bool(left)
        assert bool(left) == ("of an interrupted write" in caplog.text)
        assert names(Journal(folder, BASE).read().records) == case.after
        assert not any(SECRET.encode() in path.read_bytes() for path in folder.iterdir())
    assert reported  # at least between the writing of the new file and its renaming


@pytest.mark.parametrize("cut", [Cut.BEFORE, Cut.HALFWAY])
@pytest.mark.parametrize("name", CASES)
def test_journal_is_whole_when_the_disk_is_full_at_any_call(tmp_path: Path, name: str, cut: Cut) -> None:
    case, place = CASES[name], tmp_path / "bundle"
    for at, call in places(partial(case.run, prepare(place, case)), cut):
        folder = prepare(place, case)
        message = ""
        with faults(at, cut, full):
            try:
                case.run(folder)
            except StorageError as error:
                message = str(error)
        found = names(Journal(folder, BASE).read().records)
        assert found == case.after or (message and found == list(case.before))
        if call == "write":
            assert "free some space" in message
            assert found == list(case.before)
        if folder.exists():
            require_usable(folder, gone=case.erases and found == case.after)


@pytest.mark.parametrize("name", ["batch", "forget"])
def test_journal_is_as_before_when_a_real_disk_is_full(tmp_path: Path, name: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can be mounted by root alone")
    try:
        case = CASES[name]
        folder = prepare(disk / "bundle", case)
        fill(disk / "filler")
        edits = [make_edit(f"n{index}") for index in range(20)]  # more than the last page of the journal has room for
        action = case.run if name == "forget" else locked(lambda journal: journal.append_edits(edits))
        with pytest.raises(StorageError, match="free some space"):
            action(folder)
        assert names(Journal(folder, BASE).read().records) == START
        (disk / "filler").unlink()
        case.run(folder)
        assert names(Journal(folder, BASE).read().records) == case.after
    finally:
        subprocess.run(["umount", str(disk)], check=True, capture_output=True)


def fill(path: Path) -> None:
    """Write a file until the disk has no room."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(512))


WRITER = """
import sys
from pathlib import Path
from mobiedit.runtime.errors import BusyError
from mobiedit.runtime.journal import Journal
from mobiedit.runtime.lock import editing_lock
from tests.runtime.small_edits import BASE, make_edit
folder, name, busy, done = Path(sys.argv[1]), sys.argv[2], 0, 0
print("ready", flush=True)
sys.stdin.readline()
while done < 30:
    try:
        with editing_lock(folder):
            journal = Journal(folder, BASE)
            journal.append_edits((make_edit(f"{name}{done}"),))
            if done % 3 == 2:
                journal.forget(f"{name}{done - 1}")
            done += 1
    except BusyError:
        busy += 1
print(busy)
"""


def test_two_writers_and_a_reader_lose_nothing(tmp_path: Path) -> None:
    """Appends and compactions of two processes; whoever finds the lock taken tries again."""
    journal = Journal(tmp_path, BASE)
    journal.append_edits((make_edit("a"),))
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*command, name], stdin=pipe, stdout=pipe, text=True) for name in "xy"]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        reads = 0
        while any(writer.poll() is None for writer in writers):
            state = journal.read()  # a torn tail may be seen, never damage
            assert names(state.records)[0] == "+a"
            reads += 1
        assert reads
    finally:
        for writer in writers:
            writer.communicate(timeout=60)
    assert [writer.returncode for writer in writers] == [0, 0]
    found = names(journal.read().records)
    for name in "xy":
        own = [each for each in found if each[1] == name]
        assert sorted(own) == sorted(f"{'!' if index % 3 == 1 else '+'}{name}{index}" for index in range(30))
    assert not journal.leftovers()


def test_readers_are_unaffected_when_a_writer_holds_the_lock(tmp_path: Path) -> None:
    journal = small_journal(tmp_path)
    with editing_lock(tmp_path):
        child = os.fork()
        if child == 0:
            leave = os._exit
            try:
                leave(0 if names(Journal(tmp_path, BASE).read().records) == START else 2)
            finally:
                leave(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert names(journal.read().records) == START
