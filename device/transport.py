"""What the device tool asks of a connection to a device, whatever carries it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Completed:
    """A command that ended on the device.

    Attributes
    ----------
    code
        Its exit code on the device; 128 + n where signal n ended it.
    out, err
        What it wrote to standard output and to standard error.
    """

    code: int
    out: bytes
    err: bytes


class Transport(Protocol):
    """A connection to one device.

    Commands are lists of words, each of which reaches the device's program as it is, whatever characters it has; a
    path on the device is an absolute POSIX path. Every method raises `TransportError` when the connection fails, after
    its retries, and `DeviceTimeout` when the device does not answer in time.
    """

    def run(self, words: Sequence[str], *, stdin: bytes = b"", timeout: float = 60.0) -> Completed:
        """Run a program on the device and wait for its end; its exit code is the caller's to judge."""

    def stream(
        self, words: Sequence[str], out: Callable[[bytes], None], err: Callable[[bytes], None], *, timeout: float | None
    ) -> int:
        """Run a program on the device, hand over what it writes as it comes, and return its exit code."""

    def push(self, source: Path, target: str, *, timeout: float = 3600.0) -> None:
        """Copy a file to the device; a file that is there is replaced."""

    def pull(self, source: str, target: Path, *, timeout: float = 3600.0) -> None:
        """Copy a file from the device."""
