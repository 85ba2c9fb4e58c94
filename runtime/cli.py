"""``mobiedit``: teach a bundle a fact, ask it, list and undo."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from . import store_commands
from .bundle import open_bundle
from .cli_support import (
    CONTEXT_SETTINGS,
    bundle_argument,
    echo_json,
    execution_options,
    json_option,
    staging_option,
)
from .configuration import ExecutionConfig
from .edit_command import edit
from .evaluation.commands import bench
from .evaluation.report_command import report
from .installed_commands import OpenGroup


@click.group(cls=OpenGroup, context_settings=CONTEXT_SETTINGS)
@click.version_option(package_name="mobiedit")
def main() -> None:
    """Teach a language model a new fact on the device where it runs, by forward passes alone."""


main.add_command(edit)
main.add_command(bench)
main.add_command(report)
for store_command in store_commands.COMMANDS:
    main.add_command(store_command)


@main.command()
@bundle_argument
@click.argument("prompt")
@click.option("--max-tokens", type=click.IntRange(1), default=32, help="Longest answer.")
@execution_options
@json_option
def ask(bundle: Path, prompt: str, max_tokens: int, execution: ExecutionConfig, as_json: bool) -> None:
    """Let BUNDLE continue PROMPT, with all its edits."""
    opened = open_bundle(bundle, execution)
    if as_json:
        echo_json({"prompt": prompt, "answer": opened.ask(prompt, max_tokens)})
        return
    for piece in opened.stream(prompt, max_tokens):
        click.echo(piece, nl=False)
    click.echo()


@main.command()
@bundle_argument
@staging_option
@execution_options
@json_option
def info(bundle: Path, execution: ExecutionConfig, as_json: bool) -> None:
    """Show what BUNDLE is: model, layer, precision, checks, slots; with --ep qnn also which nodes run on the NPU."""
    data = open_bundle(bundle, execution, verify=False).info()
    if as_json:
        echo_json(data)
        return
    for name, value in _flat(data):
        click.echo(f"{name:<40} {value}")


def _flat(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested data under dotted names."""
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", f"{value:.6g}" if isinstance(value, float) else value


if __name__ == "__main__":
    main()
