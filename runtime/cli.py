"""``mobiedit``: teach a bundle a fact, ask it, list and undo."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from .bundle import open_bundle
from .cli_support import (
    CONTEXT_SETTINGS,
    ErrorGroup,
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


@click.group(cls=ErrorGroup, context_settings=CONTEXT_SETTINGS)
@click.version_option(package_name="mobiedit")
def main() -> None:
    """Teach a language model a new fact on the device where it runs, by forward passes alone."""


main.add_command(edit)
main.add_command(bench)
main.add_command(report)


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


@main.command(name="list")
@bundle_argument
@json_option
def list_edits(bundle: Path, as_json: bool) -> None:
    """List the edits of BUNDLE, oldest first."""
    edits = open_bundle(bundle, verify=False).edits()
    if as_json:
        names = ("edit_id", "created", "prompt", "subject", "target", "optimizer", "report")
        echo_json([{name: getattr(e, name) for name in names} for e in edits])
        return
    for e in edits:
        click.echo(f"{e.edit_id}  {e.created}  {e.prompt.replace('{}', e.subject)} -> {e.target}")
    if not edits:
        click.echo("no edits")


@main.command()
@bundle_argument
@click.argument("edit_id", required=False)
@json_option
def undo(bundle: Path, edit_id: str | None, as_json: bool) -> None:
    """Take an edit of BUNDLE back: the one named, or the last."""
    edit = open_bundle(bundle, verify=False).undo(edit_id)
    if as_json:
        echo_json({"edit_id": edit.edit_id, "undone": True})
    else:
        click.echo(f"undone: {edit.edit_id}  {edit.prompt.replace('{}', edit.subject)} -> {edit.target}")


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


@main.command()
@bundle_argument
@json_option
def verify(bundle: Path, as_json: bool) -> None:
    """Compare every file of BUNDLE with its hash, and read the journal to its end."""
    opened = open_bundle(bundle)
    data = {
        "files": len(opened.manifest.files),
        "edits": len(opened.edits()),
        "torn_journal_bytes": opened.info()["torn_journal_bytes"],
    }
    if as_json:
        echo_json({"ok": True, **data})
        return
    click.echo(f"{data['files']} files and {data['edits']} edits are intact")
    if data["torn_journal_bytes"]:
        click.echo(f"{data['torn_journal_bytes']} bytes of an interrupted edit will be dropped by the next edit")


def _flat(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested data under dotted names."""
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", f"{value:.6g}" if isinstance(value, float) else value


if __name__ == "__main__":
    main()
