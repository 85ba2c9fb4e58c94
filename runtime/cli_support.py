"""What the command-line tools share: exit codes for errors, and JSON output."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from .errors import MobiEditError

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C stopped, as shells have it."""


class ErrorGroup(click.Group):
    """A group whose commands print a `MobiEditError` as one line and exit with 2; bugs keep their traceback."""

    def invoke(self, context: click.Context) -> Any:  # noqa: ANN401 - click's signature
        """Run the command."""
        with exit_codes():
            return super().invoke(context)


class ErrorCommand(click.Command):
    """A single command with the same treatment of errors."""

    def invoke(self, context: click.Context) -> Any:  # noqa: ANN401 - click's signature
        """Run the command."""
        with exit_codes():
            return super().invoke(context)


class exit_codes:  # noqa: N801 - used as a verb
    """Turn errors with a remedy into one line on standard error and exit code 2."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Exit where the error is one of ours, or Ctrl-C."""
        if isinstance(error, MobiEditError):
            click.echo(f"error: {' '.join(str(error).split())}", err=True)
            sys.exit(2)
        if isinstance(error, KeyboardInterrupt):
            click.echo("stopped: nothing was committed", err=True)
            sys.exit(INTERRUPTED)


def echo_json(data: Any) -> None:  # noqa: ANN401 - any JSON value
    """Print one JSON value on standard output."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))
