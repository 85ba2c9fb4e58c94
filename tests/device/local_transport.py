"""A transport to this machine: words through a real sh, files copied. And one that fails where a test says."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from mobiedit.device.errors import DeviceTimeout, TransportError
from mobiedit.device.quoting import command_line
from mobiedit.device.transport import Completed, Transport


class LocalTransport:
    """Runs words on this machine as adb would: one line of text for a POSIX shell.

    Parameters
    ----------
    programs
        A folder that is searched for programs before $PATH.
    """

    def __init__(self, programs: Path | None = None) -> None:
        path = os.environ["PATH"]
        self._environment = {**os.environ, "PATH": f"{programs}:{path}" if programs else path}

    def run(self, words: Sequence[str], *, stdin: bytes = b"", timeout: float = 60.0) -> Completed:
        try:
            done = subprocess.run(
                ["sh", "-c", command_line(words)],
                input=stdin,
                capture_output=True,
                timeout=timeout,
                env=self._environment,
                cwd="/",
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DeviceTimeout("no answer in time: try again") from error
        return Completed(_shell_code(done.returncode), done.stdout, done.stderr)

    def stream(
        self, words: Sequence[str], out: Callable[[bytes], None], err: Callable[[bytes], None], *, timeout: float | None
    ) -> int:
        done = self.run(words, timeout=timeout or 600)
        out(done.out)
        err(done.err)
        return done.code

    def push(self, source: Path, target: str, *, timeout: float = 3600.0) -> None:
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            raise TransportError(f"cannot copy to {target}: {error.strerror}") from error

    def pull(self, source: str, target: Path, *, timeout: float = 3600.0) -> None:
        shutil.copyfile(source, target)


class Cut:
    """A transport whose connection is cut at one call, and stays cut.

    Parameters
    ----------
    at
        The number of the call, from 0.
    done
        Whether the device still does what it was asked, and only the answer is lost.
    """

    def __init__(self, transport: Transport, at: int, *, done: bool) -> None:
        self._transport = transport
        self._at = at
        self._done = done
        self.calls = 0

    def _meet(self, call: Callable[[], object]) -> None:
        self.calls += 1
        if self.calls - 1 == self._at and self._done:
            call()
        if self.calls - 1 >= self._at:
            raise TransportError("the link was cut: connect again")

    def run(self, words: Sequence[str], *, stdin: bytes = b"", timeout: float = 60.0) -> Completed:
        self._meet(lambda: self._transport.run(words, stdin=stdin, timeout=timeout))
        return self._transport.run(words, stdin=stdin, timeout=timeout)

    def stream(
        self, words: Sequence[str], out: Callable[[bytes], None], err: Callable[[bytes], None], *, timeout: float | None
    ) -> int:
        self._meet(lambda: self._transport.stream(words, out, err, timeout=timeout))
        return self._transport.stream(words, out, err, timeout=timeout)

    def push(self, source: Path, target: str, *, timeout: float = 3600.0) -> None:
        self._meet(lambda: Path(target).write_bytes(source.read_bytes()[: source.stat().st_size // 2]))
        self._transport.push(source, target, timeout=timeout)

    def pull(self, source: str, target: Path, *, timeout: float = 3600.0) -> None:
        self._meet(lambda: None)
        self._transport.pull(source, target, timeout=timeout)


def _shell_code(code: int) -> int:
    return 128 - code if code < 0 else code
