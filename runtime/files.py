"""Reading and writing files safely: no link is followed, no write is left half done."""

import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from reprlib import repr as short

from safetensors import SafetensorError

from .errors import BundleError, RequestError, StorageError

EXPORT_AGAIN = "export the bundle again or copy it again"

_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")
_FLAT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
_DEVICE_NAME = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)

_ACCESS_REMEDY = "give this user access to it, or copy the bundle to a writable place"
_REFUSALS = {
    errno.ENOSPC: "the disk is full; free some space and try again",
    errno.EFBIG: "the file-size limit is reached; raise the limit, or free some space on another disk and use that",
    errno.EROFS: "the disk is read-only; copy the bundle to a writable place",
    errno.EACCES: f"permission denied; {_ACCESS_REMEDY}",
    errno.EPERM: f"operation not permitted; {_ACCESS_REMEDY}",
}
if hasattr(errno, "EDQUOT"):
    _REFUSALS[errno.EDQUOT] = "the disk quota is used up; free some space and try again"

# Windows needs O_BINARY and has no O_NOFOLLOW.
_OPEN_FLAGS = getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn a refusal of the disk into an error with a remedy; any other error passes.

    Parameters
    ----------
    what : str
        The action, as it follows "cannot" in the message: ``"write the journal"``.

    Raises
    ------
    StorageError
        If the disk is full or read-only, or permission is missing.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        raise StorageError(f"cannot {what}: {_REFUSALS[error.errno]}") from error


@contextmanager
def library_storage_errors() -> Iterator[None]:
    """Give the errors of libraries that write files the error number that they swallowed."""
    try:
        yield
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), str(error)) from error
    except OSError as error:
        if error.errno is not None:
            raise
        # A short write: the library had the number of bytes only.
        raise OSError(errno.ENOSPC, str(error)) from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in lowercase hex, without holding the file in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_place(path: Path) -> None:
    """Refuse a file that could not be written later on: RequestError if its folder is missing, or it is a folder."""
    if not path.absolute().parent.is_dir():
        raise RequestError(f"folder {path.parent} of {path.name} is missing: create it, or name another file")
    if path.is_dir():
        raise RequestError(f"{path} is a folder: name a file in it")


def check_name(name: str) -> str:
    """Return `name` if it is a flat file name on every system.

    Raises
    ------
    BundleError
        If it could lead out of the folder, or names a device or another file on Windows.
    """
    if not _FLAT_NAME.fullmatch(name) or ".." in name or name.endswith(".") or _DEVICE_NAME.fullmatch(name):
        raise BundleError(f"file name {short(name)} leaves the bundle or is not portable; {EXPORT_AGAIN}")
    return name


def is_regular(path: Path) -> bool:
    """Tell whether a regular file is at `path`; False if nothing is there.

    Raises
    ------
    BundleError
        If a link, a folder or a device is there.
    StorageError
        If the folder may not be searched.
    """
    try:
        with storage_errors(f"look at {path}"):
            status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    # A Windows junction is no S_ISLNK, but it has a reparse tag.
    junction = getattr(status, "st_reparse_tag", 0) == getattr(stat, "IO_REPARSE_TAG_MOUNT_POINT", -1)
    if stat.S_ISLNK(status.st_mode) or junction:
        raise BundleError(f"{path} is a link, which a bundle may not hold; put the file itself in its place")
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path} is not a regular file; remove it, or {EXPORT_AGAIN}")
    return True


def safe_child(folder: Path, name: str) -> Path:
    """Return the path of the regular file `name` directly inside `folder`.

    Raises
    ------
    BundleError
        If the name is not flat, the file is missing, or it is not a regular file.
    StorageError
        If the folder may not be searched.
    """
    path = folder / check_name(name)
    if not is_regular(path):
        raise BundleError(f"file {name} is missing from the bundle {folder}; {EXPORT_AGAIN}")
    return path


def read_regular(path: Path, limit: int | None = None) -> bytes | None:
    """Return the bytes of a regular file, at most `limit` of them, or None if nothing is at `path`.

    Raises
    ------
    BundleError
        If a link or anything but a regular file is there, or the file is larger than `limit`.
    StorageError
        If the file may not be read.
    """
    if not is_regular(path):
        return None
    with storage_errors(f"read {path}"), os.fdopen(_open(path, os.O_RDONLY), "rb") as file:
        data = file.read() if limit is None else file.read(limit + 1)
    if limit is not None and len(data) > limit:
        raise BundleError(f"{path} is larger than {limit} bytes; {EXPORT_AGAIN}")
    return data


def _open(path: Path, flags: int, mode: int = 0o600) -> int:
    return os.open(path, flags | _OPEN_FLAGS, mode)


def _write_durably(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)


def fsync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on the disk; do nothing where folders cannot be opened (Windows)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems have no fsync for folders.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def ensure_folder(folder: Path) -> None:
    """Create `folder` inside a folder that exists, if it is not there; it is private to its user (mode 0700).

    Raises
    ------
    BundleError
        If the parent is missing, or a file is at `folder`.
    StorageError
        If the disk refuses.
    """
    try:
        with storage_errors(f"create {folder}"):
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)
                fsync_folder(folder.parent)
    except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        raise BundleError(f"{folder} is no folder and cannot become one; check the path of the bundle") from error


def write_atomic(path: Path, data: bytes, mode: int | None = 0o600) -> None:
    """Replace the file at `path` so that a crash leaves either the former content or all of the new one.

    Parameters
    ----------
    path : Path
        The file; its folder must exist. A link there is replaced, not followed.
    data : bytes
        The new content.
    mode : int or None
        Permissions on POSIX, less the umask; None for those of any new file.

    Raises
    ------
    StorageError
        If the disk refuses; no temporary file stays behind.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    with storage_errors(f"write {path}"):
        descriptor = _open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode)
        try:
            try:
                _write_durably(descriptor, data)
            finally:
                os.close(descriptor)
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        fsync_folder(path.parent)


def leftovers(folder: Path, *others: str) -> list[Path]:
    """Return the temporary files that a killed `write_atomic` left in `folder`, and those of the names `others`."""
    with suppress(FileNotFoundError, NotADirectoryError), storage_errors(f"look into {folder}"):
        return [path for path in folder.iterdir() if _TEMPORARY.fullmatch(path.name) or path.name in others]
    return []


def remove_durably(paths: list[Path]) -> None:
    """Remove files of one folder; on return their names are gone from the disk too. StorageError if it refuses."""
    for path in paths:
        with storage_errors(f"remove {path}"):
            path.unlink(missing_ok=True)
    if paths:
        fsync_folder(paths[0].parent)


def write_tail(path: Path, start: int, data: bytes) -> None:
    """Put `data` durably in place of whatever the file holds from byte `start` on; create the file if need be.

    Parameters
    ----------
    path : Path
        The file, which is not a link; a new one is private to its user (mode 0600).
    start : int
        The length that is to stay; on failure it is the length of the file.
    data : bytes
        The new end of the file.

    Raises
    ------
    StorageError
        If the disk refuses.
    """
    with storage_errors(f"write {path}"):
        descriptor = _open(path, os.O_WRONLY | os.O_CREAT)
        try:
            os.ftruncate(descriptor, start)
            os.lseek(descriptor, start, os.SEEK_SET)
            _write_durably(descriptor, data)
            if start == 0:
                fsync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(descriptor, start)
                os.fsync(descriptor)
            raise
        finally:
            os.close(descriptor)
