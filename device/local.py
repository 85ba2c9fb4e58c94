"""A connection to the machine that this runs on, for a runner that is used where it is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from mobiedit.runtime.errors import StorageError
from mobiedit.runtime.files import storage_errors

from .errors import DeviceTimeout
from .transport import Completed

_NOT_FOUND, _NOT_EXECUTABLE = 127, 126  # what a POSIX shell returns
_CHUNK = 2**16


class LocalTransport:
    """A `Transport` to this machine; programs are started from argument lists, without a shell."""

    def run(self, words: Sequence[str], *, stdin: bytes = b"", timeout: float = 60.0) -> Completed:
        """Run a program and wait for its end."""
        out, err = bytearray(), bytearray()
        code = self._start(words, stdin, out.extend, err.extend, timeout)
        return Completed(code, bytes(out), bytes(err))

    def stream(
        self, words: Sequence[str], out: Callable[[bytes], None], err: Callable[[bytes], None], *, timeout: float | None
    ) -> int:
        """Run a program, hand over what it writes as it comes, and return its exit code."""
        return self._start(words, b"", out, err, timeout)

    def push(self, source: Path, target: str, *, timeout: float = 3600.0) -> None:
        """Copy a file; whoever reads the old one keeps it."""
        del timeout
        _copy(source, Path(target))

    def pull(self, source: str, target: Path, *, timeout: float = 3600.0) -> None:
        """Copy a file."""
        del timeout
        _copy(Path(source), target)

    @staticmethod
    def _start(
        words: Sequence[str],
        stdin: bytes,
        out: Callable[[bytes], None],
        err: Callable[[bytes], None],
        timeout: float | None,
    ) -> int:
        # A group of its own, so that a time limit ends the program's children as well.
        pipe = subprocess.PIPE
        try:
            process = subprocess.Popen(list(words), stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        except (FileNotFoundError, NotADirectoryError):
            err(f"{words[0]}: not found\n".encode())
            return _NOT_FOUND
        except OSError as error:
            err(f"{words[0]}: {error.strerror}\n".encode())
            return _NOT_EXECUTABLE
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        threads = [
            threading.Thread(target=_feed, args=(process.stdin, stdin), daemon=True),
            threading.Thread(target=_drain, args=(process.stdout, out), daemon=True),
            threading.Thread(target=_drain, args=(process.stderr, err), daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise DeviceTimeout(f"{words[0]} did not end within {timeout:g} s: try again with a longer limit") from None
        finally:
            if process.poll() is None:
                _end(process)
        for thread in threads:
            thread.join()
        return code if code >= 0 else 128 - code


def _feed(pipe: IO[bytes], data: bytes) -> None:
    with suppress(BrokenPipeError), pipe:
        pipe.write(data)


def _drain(pipe: IO[bytes], sink: Callable[[bytes], None]) -> None:
    with pipe:
        while chunk := pipe.read1(_CHUNK):  # type: ignore[attr-defined]  # a buffered reader, whose type Popen hides
            sink(chunk)


def _end(process: subprocess.Popen[bytes]) -> None:
    if os.name == "posix":
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _copy(source: Path, target: Path) -> None:
    beside = target.with_name(f".{target.name}.part")
    try:
        with storage_errors(f"copy {source} to {target}"):
            shutil.copyfile(source, beside)
            beside.replace(target)
    except FileNotFoundError as error:
        raise StorageError(f"cannot copy {source} to {target}: {error.filename} is missing; check the paths") from error
    finally:
        beside.unlink(missing_ok=True)
