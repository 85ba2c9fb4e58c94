"""Real code in a child process that is killed, or whose disk fills, at each call that changes the disk, in turn."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

CALLS = ("open", "write", "ftruncate", "fsync", "replace", "rename", "unlink", "mkdir")
"""What `os` offers to change the disk; everything in the runtime goes through these."""

ACKNOWLEDGED = b"committed\n"


class Cut(Enum):
    """Where the end comes: in front of a call, behind it, or after half of the bytes of a write."""

    BEFORE = "before"
    HALFWAY = "halfway"
    AFTER = "after"


def kill() -> None:
    """End this process as a crash does: nothing of it runs any more."""
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def faults(at: int, cut: Cut, fail: Callable[[], None]) -> Iterator[list[str]]:
    """Let the call number `at`, from 0 on, fail; yield the names of the calls that were made."""
    real = {name: getattr(os, name) for name in CALLS}
    made: list[str] = []

    def replacement(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            made.append(name)
            if len(made) - 1 != at:
                return real[name](*arguments, **options)
            if cut is Cut.BEFORE:
                fail()
            if cut is Cut.HALFWAY and name == "write":
                descriptor, data = arguments
                real[name](descriptor, data[: len(data) // 2])
                fail()
            try:
                return real[name](*arguments, **options)
            finally:
                if cut is Cut.AFTER:
                    fail()

        return call

    for name in CALLS:
        setattr(os, name, replacement(name))
    try:
        yield made
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def places(action: Callable[[], object], cut: Cut) -> list[tuple[int, str]]:
    """Return number and name of the calls of an action at which a cut can come."""
    _, made = run_in_child(action, -1, cut)
    return [(at, name) for at, name in enumerate(made) if cut is not Cut.HALFWAY or name == "write"]


def killed(action: Callable[[], object], at: int, cut: Cut) -> bool:
    """Run an action in a child process that is killed at a call; return whether it said that it had committed."""
    committed, made = run_in_child(action, at, cut)
    assert not made, "it was not killed"
    return committed


def run_in_child(action: Callable[[], object], at: int, cut: Cut) -> tuple[bool, list[str]]:
    """Return whether an action said that it had committed, and if it was not killed the calls that it made."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        write, leave = os.write, os._exit
        try:
            with faults(at, cut, kill) as made:
                action()
                write(writing, ACKNOWLEDGED)
            write(writing, " ".join(made).encode())
            leave(0)
        finally:
            leave(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, "the action failed"
        return True, said.removeprefix(ACKNOWLEDGED).decode().split()
    assert os.WTERMSIG(status) == signal.SIGKILL
    return said.startswith(ACKNOWLEDGED), []


def full() -> None:
    """Fail as a full disk does."""
    raise OSError(errno.ENOSPC, "No space left on device")
