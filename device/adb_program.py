"""The `adb` program on the host: where it is, and one call of it."""

from __future__ import annotations

import queue
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .errors import DeviceError, DeviceTimeout
from .transport import Completed

_CHUNK = 65536

Sink = Callable[[bytes], None]
"""Takes what a program wrote, as it comes."""


@dataclass(frozen=True)
class AdbProgram:
    """Android's debug bridge.

    Attributes
    ----------
    path
        The program.
    server_port
        The TCP port of adb's server on this host; None leaves it to adb (``ANDROID_ADB_SERVER_PORT``, or else 5037).
    """

    path: str
    server_port: int | None = None

    def call(self, words: Sequence[str], *, stdin: bytes = b"", timeout: float | None = 60.0) -> Completed:
        """Run ``adb`` with some arguments; its exit code is the caller's to judge.

        Raises
        ------
        DeviceError
            If the program cannot be started.
        DeviceTimeout
            If it does not end within `timeout` seconds.
        """
        out, err = bytearray(), bytearray()
        code = self.stream(words, out.extend, err.extend, stdin=stdin, timeout=timeout)
        return Completed(code, bytes(out), bytes(err))

    def stream(
        self, words: Sequence[str], out: Sink, err: Sink, *, stdin: bytes = b"", timeout: float | None = None
    ) -> int:
        """Run ``adb``, hand over what it writes as it comes, in the caller's thread, and return its exit code.

        Raises
        ------
        DeviceError
            If the program cannot be started.
        DeviceTimeout
            If it does not end within `timeout` seconds; it is killed.
        """
        port = [] if self.server_port is None else ["-P", str(self.server_port)]
        # A file and no pipe: adb always sees its end, and then tells the device.
        with tempfile.TemporaryFile() as feed:
            feed.write(stdin)
            feed.seek(0)
            try:
                process = subprocess.Popen(
                    [self.path, *port, *words], stdin=feed, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
                )
            except OSError as error:
                raise DeviceError(f"{self.path} cannot be started ({error.strerror}): name a working adb") from error
        with process:
            try:
                return _drain(process, out, err, timeout)
            finally:
                if process.poll() is None:
                    process.kill()


def find_adb(program: str | None = None, *, server_port: int | None = None) -> AdbProgram:
    """Return the adb program: the given one, or else the one on ``$PATH``.

    Raises
    ------
    DeviceError
        If there is none.
    """
    found = shutil.which(program or "adb")
    if found is None and program is not None:
        raise DeviceError(f"there is no program {program!r}: name adb's path, or leave it out to search $PATH")
    if found is None:
        raise DeviceError(
            "adb is not on $PATH: install the package adb (Debian, Ubuntu) or Android's platform tools, or name it"
        )
    return AdbProgram(str(Path(found).absolute()), server_port)


def _drain(process: subprocess.Popen[bytes], out: Sink, err: Sink, timeout: float | None) -> int:
    """Hand over both pipes until they and the program end."""
    deadline = None if timeout is None else time.monotonic() + timeout
    chunks: queue.SimpleQueue[tuple[Sink, bytes]] = queue.SimpleQueue()
    assert process.stdout is not None
    assert process.stderr is not None
    for pipe, sink in ((process.stdout, out), (process.stderr, err)):
        threading.Thread(target=_read, args=(pipe, sink, chunks), daemon=True).start()
    open_pipes = 2
    try:
        while open_pipes:
            sink, chunk = chunks.get(timeout=_left(deadline))
            if chunk:
                sink(chunk)
            else:
                open_pipes -= 1
        return process.wait(_left(deadline))
    except (queue.Empty, subprocess.TimeoutExpired) as error:
        raise DeviceTimeout(
            f"adb did not end within {timeout:g} s: check the device and its cable or network, and try again"
        ) from error


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _read(pipe: IO[bytes], sink: Sink, chunks: queue.SimpleQueue[tuple[Sink, bytes]]) -> None:
    try:
        while chunk := pipe.read(_CHUNK):
            chunks.put((sink, chunk))
    except (OSError, ValueError):  # closed under the reader's hands when the program was killed
        pass
    chunks.put((sink, b""))
