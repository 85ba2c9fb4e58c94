"""The service ``sync:``: files to and from the device.

After AOSP, packages/modules/adb/SYNC.TXT and file_sync_protocol.h: requests of four letters, a little-endian length and
a path; only paths below the device's folder are served.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from .faults import Faults
from .link import Stream

_REQUEST = struct.Struct("<4sI")
_STAT = struct.Struct("<4s3I")
_STAT_2 = struct.Struct("<4sIQQ4IQ3q")
_ENTRY = struct.Struct("<4s4I")
_CHUNK = 64 * 1024 - 8


class SyncService:
    """The requests on one stream.

    Parameters
    ----------
    stream
        Where they come and are answered.
    root
        The device's folder, as a real path.
    faults
        What goes wrong.
    """

    def __init__(self, stream: Stream, root: Path, faults: Faults) -> None:
        self._stream, self._root, self._faults = stream, root, faults
        self._answers: dict[bytes, Callable[[Path], None]] = {
            b"STAT": self._stat,
            b"STA2": lambda path: self._stat_2(b"STA2", path, Path.stat),
            b"LST2": lambda path: self._stat_2(b"LST2", path, Path.lstat),
            b"LIST": self._list,
            b"SEND": self._take,
            b"RECV": self._give,
        }

    def run(self) -> None:
        """Answer requests until the other side quits."""
        while True:
            request, length = _REQUEST.unpack(self._stream.read(_REQUEST.size))
            if request == b"QUIT":
                return
            path = Path(os.fsdecode(self._stream.read(length)))
            if request not in self._answers:
                self._fail("unknown request")
                return
            self._answers[request](path)

    def _real(self, path: Path) -> Path:
        """Return `path` if it lies below the device's folder, links followed but for the last."""
        if path != self._root and not path.parent.resolve().is_relative_to(self._root):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return path

    def _stat(self, path: Path) -> None:
        try:
            found = self._real(path).lstat()
            answer = (found.st_mode, found.st_size & 0xFFFFFFFF, int(found.st_mtime))
        except OSError:
            answer = (0, 0, 0)
        self._stream.write(_STAT.pack(b"STAT", *answer))

    def _stat_2(self, request: bytes, path: Path, look: Callable[[Path], os.stat_result]) -> None:
        try:
            s = look(self._real(path))
            times = (int(s.st_atime), int(s.st_mtime), int(s.st_ctime))
            answer = _STAT_2.pack(
                request, 0, s.st_dev, s.st_ino, s.st_mode, s.st_nlink, s.st_uid, s.st_gid, s.st_size, *times
            )
        except OSError as error:
            answer = _STAT_2.pack(request, error.errno or errno.EIO, *[0] * 10)
        self._stream.write(answer)

    def _list(self, path: Path) -> None:
        try:
            entries = list(self._real(path).iterdir())
        except OSError:
            entries = []
        for entry in entries:
            found, name = entry.lstat(), os.fsencode(entry.name)
            size = found.st_size & 0xFFFFFFFF
            self._stream.write(_ENTRY.pack(b"DENT", found.st_mode, size, int(found.st_mtime), len(name)) + name)
        self._stream.write(_ENTRY.pack(b"DONE", 0, 0, 0, 0))

    def _take(self, target: Path) -> None:
        """Write a file; like the real daemon, read what comes to its end before saying that it failed."""
        name, _, mode = str(target).rpartition(",")
        path = Path(name)
        failure: str | None = None
        file = None
        try:
            if self._real(path).is_symlink():
                path.unlink()
            file = path.open("wb")
        except OSError as error:
            failure = f"couldn't create file: {error.strerror}"
        try:
            while True:
                kind, size = _REQUEST.unpack(self._stream.read(_REQUEST.size))
                if kind == b"DONE":
                    break
                data = self._stream.read(size)
                if failure is None and not self._faults.take_space(size):
                    failure = f"write failed: {os.strerror(errno.ENOSPC)}"
                if file and failure is None:
                    file.write(bytes([data[0] ^ 1]) + data[1:] if self._faults.damage and data else data)
        finally:
            if file:
                file.close()
        if failure is None:
            path.chmod(stat.S_IMODE(int(mode)))
            os.utime(path, (size, size))  # the length of DONE is the time
            self._stream.write(_REQUEST.pack(b"OKAY", 0))
        else:
            if file:
                path.unlink()
            self._fail(failure)

    def _give(self, path: Path) -> None:
        try:
            with self._real(path).open("rb") as file:
                while data := file.read(_CHUNK):
                    self._stream.write(_REQUEST.pack(b"DATA", len(data)) + data)
            self._stream.write(_REQUEST.pack(b"DONE", 0))
        except OSError as error:
            self._fail(f"open failed: {error.strerror}")

    def _fail(self, reason: str) -> None:
        text = reason.encode()
        self._stream.write(_REQUEST.pack(b"FAIL", len(text)) + text)
