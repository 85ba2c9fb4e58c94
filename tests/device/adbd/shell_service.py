"""The service ``shell,v2,raw:``: a command in a real shell, its three standard streams, and its exit code.

After AOSP, packages/modules/adb/shell_protocol.h: packets of a byte for what it is, a little-endian length, and the
bytes.
"""

from __future__ import annotations

import os
import struct
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO

from .link import Stream, StreamClosedError

STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)
_HEADER = struct.Struct("<BI")


def run_shell(stream: Stream, command: str, home: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Run a command and pass its streams on until it ends; return its process.

    As with the real daemon, a command goes on when its link is cut.
    """
    process = subprocess.Popen(
        [b"/bin/sh", b"-c", os.fsencode(command)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=home,
        env=environment,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    sending = threading.Lock()
    readers = [
        threading.Thread(target=_pass_on, args=(pipe, kind, stream, sending), daemon=True)
        for pipe, kind in ((process.stdout, STDOUT), (process.stderr, STDERR))
    ]
    for reader in readers:
        reader.start()
    threading.Thread(target=_feed, args=(stream, process.stdin), daemon=True).start()
    threading.Thread(target=_report, args=(process, readers, stream, sending), daemon=True).start()
    return process


def _pass_on(pipe: IO[bytes], kind: int, stream: Stream, sending: threading.Lock) -> None:
    told = True
    with pipe:
        while chunk := os.read(pipe.fileno(), 32 * 1024):
            if told:
                told = _send(stream, sending, kind, chunk)


def _feed(stream: Stream, stdin: IO[bytes]) -> None:
    try:
        while True:
            kind, length = _HEADER.unpack(stream.read(_HEADER.size))
            data = stream.read(length)
            if kind == STDIN:
                stdin.write(data)
                stdin.flush()
            elif kind == CLOSE_STDIN:
                stdin.close()
    except (StreamClosedError, OSError, ValueError):
        pass
    finally:
        with suppress(OSError):
            stdin.close()


def _report(
    process: subprocess.Popen[bytes], readers: list[threading.Thread], stream: Stream, sending: threading.Lock
) -> None:
    code = process.wait()
    for reader in readers:
        reader.join()
    _send(stream, sending, EXIT, bytes([code if code >= 0 else 128 - code]))
    stream.finished.set()


def _send(stream: Stream, sending: threading.Lock, kind: int, data: bytes) -> bool:
    try:
        with sending:
            stream.write(_HEADER.pack(kind, len(data)) + data)
    except StreamClosedError:
        return False
    return True
