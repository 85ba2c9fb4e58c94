"""``mobiedit bake``: a bundle's edits back in the model that it was exported from."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from mobiedit.runtime.bundle import open_bundle
from mobiedit.runtime.cli_support import bundle_argument, echo_json

from .libraries import prepare_libraries


@click.command()
@bundle_argument
@click.option("--base", required=True, help="What the bundle was exported from: as MODEL of mobiedit-export.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--lora", is_flag=True, help="Write the edits alone, as a PEFT adapter.")
@click.option("--revision", help="Revision of a Hub id; the bundle's when left out.", show_default=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bake(bundle: Path, base: str, out: Path, lora: bool, revision: str | None, as_json: bool) -> None:
    """Write the model that BUNDLE was exported from, with the edits in force, for transformers to load."""
    prepare_libraries("baking")
    # Imported late: the runtime lists this command where torch is not installed.
    from .bake import bake as bake_edits

    opened = open_bundle(bundle)
    report = bake_edits(opened, base, out, lora=lora, revision=revision)
    token = opened.manifest.sink_token
    text = opened.tokenizer.decode([token], special=True)
    if as_json:
        echo_json({"out": str(out), "adapter": lora, **asdict(report), "first_token": {"id": token, "text": text}})
        return
    for note in report.notes:
        click.echo(f"note: {note}", err=True)
    kind, edits = "adapter" if lora else "checkpoint", "1 edit" if report.rank == 1 else f"{report.rank} edits"
    click.echo(f"wrote {out}: {kind}, {edits} in {report.weight}, {report.dtype}")
    click.echo(f"  lost to rounding: {report.rounding:.1e} of an edit")
    click.echo(f"  the bundle reads every text behind token {token}, {text!r}: put it in front of yours as well")
