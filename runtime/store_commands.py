"""The commands of the edit store: list, undo, history, forget, export-edits, import-edits, verify."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from .bundle import open_bundle
from .cli_support import bundle_argument, echo_json, json_option
from .edit_store import EditStore
from .errors import RequestError, StorageError
from .files import is_regular, storage_errors, write_atomic
from .history import Measured

_LISTED = ("edit_id", "created", "prompt", "subject", "target", "optimizer", "report")


@click.command(name="list")
@bundle_argument
@json_option
def list_edits(bundle: Path, as_json: bool) -> None:
    """List the edits of BUNDLE that are in force, oldest first."""
    edits = open_bundle(bundle, verify=False).edits()
    if as_json:
        echo_json([{name: getattr(e, name) for name in _LISTED} for e in edits])
        return
    for e in edits:
        click.echo(f"{e.edit_id}  {e.created}  {e.prompt.replace('{}', e.subject)} -> {e.target}")
    if not edits:
        click.echo("no edits")


@click.command()
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


@click.command()
@bundle_argument
@json_option
def history(bundle: Path, as_json: bool) -> None:
    """Tell what happened to the edits of BUNDLE: every record in order, with its state now.

    The figures are the target's probability before and after the edit, with a star where greedy decoding yields it.
    """
    entries = _store(bundle).history()
    if as_json:
        echo_json([entry.to_dict() for entry in entries])
        return
    for entry in entries:
        fact = f"  {entry.fact[0]} -> {entry.fact[1]}" if entry.fact else ""
        figures = f"  {_figure(entry.before)} -> {_figure(entry.after)}" if entry.before and entry.after else ""
        click.echo(f"{entry.edit_id}  {entry.created}  {entry.words}{figures}{fact}")
    if not entries:
        click.echo("no edits were ever made")


@click.command()
@bundle_argument
@click.argument("edit_id", required=False)
@json_option
def forget(bundle: Path, edit_id: str | None, as_json: bool) -> None:
    """Withdraw the edit EDIT_ID of BUNDLE and erase it from the journal, without a way back."""
    if not edit_id:
        raise RequestError("forgetting cannot be taken back: name the edit, as `mobiedit list` or `history` shows it")
    told = _store(bundle).forget(edit_id)
    if as_json:
        echo_json(asdict(told))
    else:
        click.echo(f"forgotten: {told.edit_id}" + (f"; {told.back} is in force again" if told.back else ""))


@click.command(name="export-edits")
@bundle_argument
@click.option("--out", type=click.Path(path_type=Path, allow_dash=True), help="A file instead of standard output.")
@click.option("--requests-only", is_flag=True, help="The requests alone: for `mobiedit edit --batch`, any model.")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
def export_edits(bundle: Path, out: Path | None, requests_only: bool, force: bool) -> None:
    """Write the edits of BUNDLE that are in force as JSON lines. The file is personal: mode 0600."""
    lines = _store(bundle).export_lines(requests_only=requests_only)
    if out is None or str(out) == "-":
        click.echo(lines, nl=False)
        return
    if is_regular(out) and not force:
        raise RequestError(f"{out} exists: give another name, or --force to replace it")
    try:
        write_atomic(out, lines.encode())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RequestError(f"{out.parent} is not a folder: make it first") from error
    click.echo(f"{lines.count(chr(10))} edits in {out}")


@click.command(name="import-edits")
@bundle_argument
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@json_option
def import_edits(bundle: Path, file: Path, as_json: bool) -> None:
    """Commit the edits that `export-edits` wrote to FILE (or standard input, -) to BUNDLE, all or none."""
    told = _store(bundle).import_lines(_content(file))
    if as_json:
        echo_json(asdict(told))
    else:
        click.echo(f"{len(told.added)} edits imported, {len(told.skipped)} were there already")


@click.command()
@bundle_argument
@json_option
def verify(bundle: Path, as_json: bool) -> None:
    """Compare every file of BUNDLE with its hash, and every record of its journal with its checksum and the model."""
    opened = open_bundle(bundle)
    data = {"files": len(opened.manifest.files), **EditStore(opened.path, opened.manifest).verify()}
    if as_json:
        echo_json({"ok": True, **data})
        return
    click.echo(f"{data['files']} files and {data['edits']} edits are intact, {data['records']} records in the journal")
    if data["torn_journal_bytes"]:
        what = data["torn_record"] or "write"
        click.echo(f"{data['torn_journal_bytes']} bytes of an interrupted {what} will be dropped by the next write")
    for name in data["leftover_files"]:
        click.echo(f"{name} of an interrupted write may hold edits; the next write removes it")


COMMANDS = (list_edits, undo, history, forget, export_edits, import_edits, verify)


def _store(bundle: Path) -> EditStore:
    opened = open_bundle(bundle, verify=False)
    return EditStore(opened.path, opened.manifest)


def _figure(measured: Measured) -> str:
    if measured.probability is None:
        return "-"
    return f"{measured.probability:.3f}{'*' if measured.greedy else ''}"


def _content(file: Path) -> bytes:
    if str(file) == "-":
        return sys.stdin.buffer.read()
    try:
        with storage_errors(f"read {file}"):
            return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise RequestError(f"{file} is no file: give what `mobiedit export-edits` wrote") from error
    except OSError as error:
        raise StorageError(f"cannot read {file}: {error.strerror}; copy it to another place") from error
