"""What the command-line tools share: exit codes for errors, common parameters, and JSON output."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import click

from .configuration import ExecutionConfig, ExecutionProvider, Staging
from .errors import MobiEditError, RequestError
from .qnn_options import QnnOptions

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}
"""Settings of every tool's commands."""

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C stopped, as shells have it."""

bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

contrast_option = click.option(
    "--contrast/--no-contrast",
    default=None,
    show_default="on for gated edits",
    help="Act less on the subject where it stands without the words that the prompt has before it.",
)


def execution_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of how graphs are run; it gets them as one argument, ``execution``."""

    @click.option(
        "--threads",
        type=click.IntRange(0),
        default=0,
        help="Threads of a graph, and of numpy in an edit; 0 leaves the choice to them.",
    )
    @click.option(
        "--ep",
        type=click.Choice([each.value for each in ExecutionProvider]),
        default=ExecutionProvider.CPU.value,
        help="What runs the graphs; qnn: Qualcomm's NPU, or its simulator.",
    )
    @click.option("--soc", help="The SoC that --ep qnn compiles for, as SM8650.")
    @click.option(
        "--qnn-option",
        "qnn_options",
        multiple=True,
        metavar="NAME=VALUE",
        help="Set an option of QNN; may be repeated.",
    )
    @wraps(command)
    def with_execution(
        *args: object,
        threads: int,
        ep: str,
        soc: str | None,
        qnn_options: tuple[str, ...],
        staging: str = Staging.AUTO.value,
        **others: object,
    ) -> object:
        qnn = QnnOptions.of(dict(_assignment(text) for text in qnn_options))
        return command(
            *args, execution=ExecutionConfig(threads, ExecutionProvider(ep), soc, qnn, Staging(staging)), **others
        )

    return with_execution


staging_option = click.option(
    "--staging",
    type=click.Choice([each.value for each in Staging]),
    default=Staging.AUTO.value,
    help="Hold the graphs in memory in turn during an edit; auto: when they have more than 1 GB of weights.",
)
"""For the commands that edit; it goes above `execution_options`."""

progress_option = click.option(
    "--progress/--no-progress",
    default=None,
    help="Show how far it is; by default where standard error is a terminal.",
    show_default=False,
)
"""For the commands that take long: a remote shell has no terminal, and its user wants to see all the same."""


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise RequestError(f"{text!r} is not of the form NAME=VALUE: write for example htp_performance_mode=balanced")
    return name.strip(), value.strip()


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn an error with a remedy into one line on standard error and exit code 2; a bug keeps its traceback."""
    try:
        yield
    except MobiEditError as error:
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        click.echo("stopped: nothing was committed", err=True)
        sys.exit(INTERRUPTED)


class _WithExitCodes(click.Command):
    def invoke(self, context: click.Context) -> Any:  # noqa: ANN401 - click's signature
        """Run the command."""
        with exit_codes():
            return super().invoke(context)


class ErrorCommand(_WithExitCodes):
    """A command whose errors follow `exit_codes`."""


class ErrorGroup(_WithExitCodes, click.Group):
    """A group whose commands' errors follow `exit_codes`."""


def echo_json(data: Any) -> None:  # noqa: ANN401 - any JSON value
    """Print one JSON value on standard output."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))
