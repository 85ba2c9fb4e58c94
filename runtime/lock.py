"""One writer at a time: a lock that the system frees when its process ends, however it ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import BusyError
from .files import ensure_folder, is_regular, storage_errors

LOCK_NAME = "lock"


@contextmanager
def editing_lock(folder: Path, holder: str = "another process is editing this bundle") -> Iterator[None]:
    """Hold the right to write in `folder`; readers need none. Created if its parent exists.

    Not re-entrant: a second lock in the same process is refused as one of another process would be.

    Parameters
    ----------
    holder
        What the message says of whoever holds the lock already.

    Raises
    ------
    BusyError
        At once, if another process holds the lock.
    BundleError
        If the lock file is a link or no regular file, or there is no such bundle.
    StorageError
        If the disk refuses: read-only, full, no permission.
    """
    ensure_folder(folder)
    path = folder / LOCK_NAME
    is_regular(path)
    lock = FileLock(path, blocking=False, mode=0o600)
    try:
        with storage_errors(f"lock {folder}"):
            lock.acquire()
    except Timeout as error:
        raise BusyError(f"{holder}; wait for it to end and try again") from error
    try:
        yield
    finally:
        lock.release()
