"""The lock, against a real second process."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from mobiedit.runtime.errors import BundleError, BusyError, StorageError
from mobiedit.runtime.lock import editing_lock

HOLDER = """
import os, sys
from pathlib import Path
from mobiedit.runtime.lock import editing_lock
with editing_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
    if sys.argv[2] == "abrupt":
        os._exit(1)
"""


@contextmanager
def other_process(folder: Path, end: str = "orderly") -> Iterator[None]:
    """Hold the lock of `folder` in another process until the block ends."""
    command = [sys.executable, "-c", HOLDER, str(folder), end]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield
        finally:
            process.communicate("end\n", timeout=30)


def test_editing_lock_is_busy_when_another_process_holds_it(tmp_path: Path) -> None:
    message = "^another process is editing this bundle; wait for it to end and try again$"
    with other_process(tmp_path), pytest.raises(BusyError, match=message), editing_lock(tmp_path):
        pytest.fail("two writers")


def test_editing_lock_is_free_when_another_process_released_it(tmp_path: Path) -> None:
    with other_process(tmp_path):
        pass
    with editing_lock(tmp_path):
        pass


def test_editing_lock_is_free_when_another_process_died(tmp_path: Path) -> None:
    with other_process(tmp_path, "abrupt"):
        pass
    with editing_lock(tmp_path):
        pass


def test_editing_lock_is_busy_when_this_process_holds_it(tmp_path: Path) -> None:
    with editing_lock(tmp_path), pytest.raises(BusyError), editing_lock(tmp_path):
        pytest.fail("two writers")


def test_editing_lock_is_free_when_the_body_raised(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), editing_lock(tmp_path):
        raise PermissionError(errno.EACCES, "of the body, so not of the lock")
    with editing_lock(tmp_path):
        pass


def test_editing_lock_creates_folder_when_bundle_has_no_edits(tmp_path: Path) -> None:
    with editing_lock(tmp_path / "edits"):
        assert (tmp_path / "edits" / "lock").is_file()


def test_editing_lock_refuses_when_bundle_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="check the path"), editing_lock(tmp_path / "typo" / "edits"):
        pytest.fail("locked nothing")
    assert not list(tmp_path.iterdir())


def test_editing_lock_refuses_when_lock_is_a_link(tmp_path: Path) -> None:
    try:
        (tmp_path / "lock").symlink_to(tmp_path / "target")
    except OSError:
        pytest.skip("this user may not make links")
    with pytest.raises(BundleError, match="is a link"), editing_lock(tmp_path):
        pytest.fail("followed a link")
    assert not (tmp_path / "target").exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions bind only other users than root")
def test_editing_lock_refuses_when_folder_is_read_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="copy the bundle to a writable place"), editing_lock(tmp_path):
        pytest.fail("locked without a file")


def test_editing_lock_refuses_when_disk_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(*_: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(StorageError, match="copy the bundle to a writable place"), editing_lock(tmp_path):
        pytest.fail("locked without a file")
