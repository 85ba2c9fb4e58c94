"""Run the runner on the device: its output as it comes, its exit code as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mobiedit.runtime.errors import RequestError

from .errors import DeviceError, TransportError
from .layout import BundlePlace
from .transport import Transport
from .versions import current_path

COMMANDS = (
    "ask",
    "bench",
    "edit",
    "export-edits",
    "forget",
    "history",
    "import-edits",
    "info",
    "list",
    "undo",
    "verify",
)
"""The runner's commands that take a bundle."""

_CHECK = (
    "import importlib.util as u, sys; sys.exit(0 if u.find_spec('mobiedit') and u.find_spec('mobiedit.runtime') else 3)"
)
_WITH_PROGRESS = ("bench", "edit")
_NO_RUNNER = 3
_NOT_THERE = (126, 127)

_SIGNALS = {
    129: "the connection's end stopped the runner",
    130: "the runner was interrupted",
    132: "the runner has instructions that this processor does not know: the wheels are for another one",
    134: "the runner aborted; the lines above say why",
    137: "the device's system killed the runner, most likely because memory ran out: close other programs there, edit "
    "with --staging on, or push a bundle of a smaller precision (w8, w4)",
    139: "the runner crashed (segmentation fault)",
    143: "the runner was told to end",
}
"""Exit codes of a process that a signal ended, 128 + its number."""


class RunSampler(Protocol):
    """What looks at the device's energy and temperatures during a run."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> dict[str, Any]:
        """End, and return what was seen."""


@dataclass(frozen=True)
class RunResult:
    """A run that ended.

    Attributes
    ----------
    code
        The runner's exit code.
    note
        What a code means that a shell made of a signal; None for the runner's own codes.
    samples
        What the sampler saw; None without one.
    """

    code: int
    note: str | None
    samples: dict[str, Any] | None


def run_on_device(
    transport: Transport,
    place: BundlePlace,
    arguments: Sequence[str],
    out: Callable[[bytes], None],
    err: Callable[[bytes], None],
    *,
    python: str | None = None,
    progress: bool = False,
    sampler: RunSampler | None = None,
) -> RunResult:
    """Run a command of the runner on the bundle that is current on the device.

    Parameters
    ----------
    arguments
        The command and its arguments, without the bundle, which comes right behind the command.
    out, err
        Are given what the runner writes, as it comes.
    python
        A Python on the device that has the runner installed, instead of the one that ``push --runner`` brought.
    progress
        Have the runner show how far it is, which it would not do without a terminal.
    sampler
        Started before and stopped after the run, whatever ends it.

    Raises
    ------
    RequestError
        If the command is none of the runner's.
    DeviceError
        If the device does not have the bundle, or no Python with the runner.
    TransportError
        If the connection fails.
    """
    if not arguments or arguments[0] not in COMMANDS:
        named = repr(arguments[0]) if arguments else "nothing"
        raise RequestError(f"{named} is no command for a bundle: write one of {', '.join(COMMANDS)} behind the --")
    bundle = current_path(transport, place)
    program = python or place.layout.runner_python
    _require_runner(transport, program, own=python is None)
    command, *others = arguments
    shown = ["--progress"] if progress and command in _WITH_PROGRESS else []
    words = [program, "-m", "mobiedit.runtime.cli", command, bundle, *shown, *others]
    if sampler:
        sampler.start()
    samples = None
    try:
        code = transport.stream(words, out, err, timeout=None)
    except TransportError as error:
        raise type(error)(
            f"{error}; an edit is committed whole or not at all: see with `mobiedit-device run {place.name} -- list`"
        ) from error
    finally:
        if sampler:
            samples = sampler.stop()
    return RunResult(code, _note(code), samples)


def _require_runner(transport: Transport, program: str, *, own: bool) -> None:
    """Refuse a Python that is not there, or does not have the runner."""
    done = transport.run([program, "-c", _CHECK])
    if done.code == 0:
        return
    if done.code in _NOT_THERE:
        remedy = (
            "push it with `mobiedit-device push BUNDLE --runner`, or name a Python that has it with --python"
            if own
            else "give the path of one that is there with --python, or leave it out and push with --runner"
        )
        raise DeviceError(f"the device has no Python at {program}: {remedy}")
    if done.code == _NO_RUNNER:
        raise DeviceError(f"{program} on the device does not have mobiedit: push with --runner, or install it there")
    said = done.err.decode("utf-8", "replace").strip().splitlines()
    raise DeviceError(
        f"{program} on the device does not run, exit code {done.code} ({said[-1] if said else 'no message'}): "
        "mobiedit-device doctor says what the device lacks"
    )


def _note(code: int) -> str | None:
    if code <= 128:
        return None
    return f"exit code {code}: {_SIGNALS.get(code, f'signal {code - 128} ended the runner')}"
