"""A connection to one device over adb."""

from __future__ import annotations

import hashlib
import posixpath
import re
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.files import storage_errors

from .adb_failures import CHECK_CONNECTION, AdbFailure, FailureKind, NotReached
from .adb_program import AdbProgram, Sink
from .command_frame import CommandFrame
from .errors import DeviceError, DeviceTimeout, TransportError
from .transport import Completed

_LONGEST_LINE = 60_000
"""Bytes of a command. adb's server takes lengths of four hexadecimal digits."""

_SHORT = 60.0
"""Seconds for what takes a moment on a device that answers."""

T = TypeVar("T")

_NETWORK_SERIAL = re.compile(r"\S+:\d+")


@dataclass(frozen=True)
class Retries:
    """How often a call is made again when the connection fails.

    Attributes
    ----------
    attempts
        Calls in all.
    pause
        Seconds before the second one; each further pause is twice the one before.
    """

    attempts: int = 4
    pause: float = 0.5


class AdbTransport:
    """A `Transport` over adb.

    A command is tried again only if it certainly has not begun. A copy of a file is tried again after any failure of
    the connection: it goes to a temporary name beside the target and is renamed, so half a file never has its name.

    Parameters
    ----------
    adb
        The program on the host.
    serial
        Which device, as `adb_devices.choose` returns it. One that is reached over a network is connected again
        between attempts.
    retries
        How often a call is made again.
    """

    def __init__(self, adb: AdbProgram, serial: str, retries: Retries | None = None) -> None:
        self.adb = adb
        self.serial = serial
        self.retries = retries or Retries()
        self._checked = False

    def run(self, words: Sequence[str], *, stdin: bytes = b"", timeout: float = 60.0) -> Completed:
        """Run a program on the device and wait for its end.

        Parameters
        ----------
        words
            The program and its arguments, each of which reaches it as it is.
        stdin
            What it reads on standard input.
        timeout
            Seconds for one attempt.

        Returns
        -------
        Completed
            Its exit code (128 + n if signal n ended it; 127 if there is no such program) and what it wrote.

        Raises
        ------
        RequestError
            If a word holds NUL, or the words are longer than adb takes.
        TransportError
            If the device was not reached, or the connection broke before the program's end: then it may have run.
        DeviceTimeout
            If it did not end in time; it may still run.
        """
        out, err = bytearray(), bytearray()
        code = self._shell(words, out.extend, err.extend, stdin, timeout)
        return Completed(code, bytes(out), bytes(err))

    def stream(
        self, words: Sequence[str], out: Callable[[bytes], None], err: Callable[[bytes], None], *, timeout: float | None
    ) -> int:
        """Run a program on the device as `run` does, hand over what it writes as it comes, and return its exit code."""
        return self._shell(words, out, err, b"", timeout)

    def push(self, source: Path, target: str, *, timeout: float = 3600.0) -> None:
        """Copy a file to the device; a file that is there is replaced, at once.

        Raises
        ------
        RequestError
            If `source` is not a file, or `target` not absolute.
        DeviceError
            If the device refuses: no such folder, a folder at `target`, no permission, no space.
        TransportError, DeviceTimeout
            If the connection fails, after all attempts; `target` is then the old file or the new one.
        """
        if not source.is_file():
            raise RequestError(f"{source} is not a file: check its path")
        folder, name = posixpath.split(_absolute(target))
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
        mine = posixpath.join(folder, f".{digest[:12]}")
        what = f"cannot push {source.name!r} to {target!r}"

        def copy() -> None:
            # A name for each attempt: the mv of one that was cut may yet run, and must not take this one's file.
            temporary = f"{mine}-{secrets.token_hex(4)}.part"
            # What it left behind goes first: a large file may not be there twice.
            self._run_once("sh", "-c", 'rm -f "$1"-*.part', "sh", mine)
            self._copy(["push", str(source.absolute()), temporary], what, timeout)
            # mv would put the file into a folder that has the target's name.
            moved = self._run_once("sh", "-c", 'test ! -d "$2" && mv -f "$1" "$2"', "sh", temporary, target)
            if moved.code:
                self._run_once("rm", "-f", temporary)
                reason = moved.err.decode("utf-8", "replace").strip() or "it is a folder"
                raise DeviceError(f"{what} ({reason}): remove what is in its place")

        self._repeat(copy, TransportError)

    def pull(self, source: str, target: Path, *, timeout: float = 3600.0) -> None:
        """Copy a file from the device; a file at `target` is replaced, at once.

        Raises
        ------
        RequestError
            If `source` is not absolute.
        DeviceError
            If the device has no such file or does not let it be read, or the host's disk is full.
        StorageError
            If `target` may not be written on the host.
        TransportError, DeviceTimeout
            If the connection fails, after all attempts; `target` is then as it was.
        """
        _absolute(source)
        temporary = target.absolute().with_name(f".{secrets.token_hex(6)}.part")
        with storage_errors(f"write {target}"):
            temporary.touch()

        def copy() -> None:
            if self._run_once("test", "-f", source).code:
                raise DeviceError(f"the device has no file {source!r}: check its path")
            self._copy(["pull", source, str(temporary)], f"cannot pull {source!r}", timeout)

        try:
            self._repeat(copy, TransportError)
            with storage_errors(f"write {target}"):
                temporary.replace(target)
        finally:
            with suppress(OSError):
                temporary.unlink()

    def _shell(self, words: Sequence[str], out: Sink, err: Sink, stdin: bytes, timeout: float | None) -> int:
        return self._repeat(lambda: self._shell_once(words, out, err, stdin, timeout), NotReached)

    def _shell_once(self, words: Sequence[str], out: Sink, err: Sink, stdin: bytes, timeout: float | None) -> int:
        frame = CommandFrame(words, out, err)
        if (size := len(frame.line.encode("utf-8", "surrogateescape"))) > _LONGEST_LINE:
            raise RequestError(f"a command of {size} bytes is too long for adb: pass less at once")
        self._check_features()
        call = ["-s", self.serial, "shell", "-T", frame.line]
        code = self.adb.stream(call, frame.feed_out, frame.feed, stdin=stdin, timeout=timeout)
        frame.finish()
        if frame.code is not None and frame.whole:
            return frame.code
        failure = AdbFailure.of(Completed(code, b"", frame.before))
        if frame.began or failure.kind is FailureKind.UNKNOWN:
            what = f"the end of {words[0]!r} on {self.serial} was not seen, it may go on"
            raise TransportError(f"{what} ({failure.reason}): {CHECK_CONNECTION}")
        raise failure.error(f"cannot run {words[0]!r} on {self.serial}")

    def _run_once(self, *words: str) -> Completed:
        out, err = bytearray(), bytearray()
        code = self._shell_once(words, out.extend, err.extend, b"", _SHORT)
        return Completed(code, bytes(out), bytes(err))

    def _copy(self, words: Sequence[str], what: str, timeout: float) -> None:
        completed = self.adb.call(["-s", self.serial, *words], timeout=timeout)
        if completed.code:
            raise AdbFailure.of(completed).error(what)

    def _check_features(self) -> None:
        """Refuse a device whose shell passes no exit codes on and mixes standard output with standard error."""
        if self._checked:
            return
        completed = self.adb.call(["-s", self.serial, "features"])
        if completed.code:
            error = AdbFailure.of(completed).error(f"cannot ask {self.serial} for its features")
            raise NotReached(str(error))  # however it failed, the command itself has not begun
        if b"shell_v2" not in completed.out.split():
            raise DeviceError(f"{self.serial} has no shell_v2, so exit codes would be lost: use Android 7 or newer")
        self._checked = True

    def _repeat(self, action: Callable[[], T], failure: type[TransportError]) -> T:
        """Do `action`, again after such a failure of the connection; never after a time limit."""
        for attempt in range(self.retries.attempts - 1):
            try:
                return action()
            except DeviceTimeout:
                raise
            except failure:
                time.sleep(self.retries.pause * 2**attempt)
                self._reconnect()
        return action()

    def _reconnect(self) -> None:
        # adb itself tries a lost network device again only every ten seconds; a cable needs nothing.
        if _NETWORK_SERIAL.fullmatch(self.serial):
            with suppress(TransportError):  # the next attempt tells
                self.adb.call(["disconnect", self.serial], timeout=_SHORT)
                self.adb.call(["connect", self.serial], timeout=_SHORT)


def _absolute(path: str) -> str:
    if not path.startswith("/"):
        raise RequestError(f"the path {path!r} on the device is not absolute: write it from / on")
    return path
