"""What commands of the device tool print for people; with ``--json`` they print the same as data."""

from __future__ import annotations

from typing import Any

import click

from .listing import Listing
from .push import PushResult
from .runner import Runner
from .sampling import UNAVAILABLE


def print_push(result: PushResult) -> None:
    """Print what a push did."""
    files = result.files
    if result.up_to_date:
        click.echo(f"{result.bundle} is on the device already, every file intact: {result.version}")
    else:
        click.echo(f"{result.bundle} is current on the device: {result.version}")
        click.echo(
            f"  sent        {files.sent_files} files, {files.sent_bytes / 2**20:.1f} MiB; "
            f"{files.taken_files} were there"
        )
    click.echo(f"  edits       {result.edits}")
    click.echo(f"  previous    {result.previous or 'none'}")


def print_listing(listing: Listing) -> None:
    """Print what is on a device; a star marks the current version."""
    for bundle in listing.bundles:
        click.echo(bundle.name + (f"  ({bundle.fault})" if bundle.fault else ""))
        for version in bundle.versions:
            size = "damaged" if version.bytes is None else f"{version.bytes / 2**20:.1f} MiB"
            edits = "journal damaged" if version.edits is None else f"{version.edits} edits"
            click.echo(f"  {'*' if version.current else ' '} {version.version}  {size}  {edits}  {version.model or ''}")
    if not listing.bundles:
        click.echo("no bundles")
    click.echo(f"runner: {listing.runner or 'none'}")


def print_runner(runner: Runner) -> None:
    """Print what was installed."""
    click.echo(f"  runner      {runner.version_id}: mobiedit {runner.versions.get('mobiedit', 'of this tree')}")


def print_samples(samples: dict[str, Any]) -> None:
    """Print on standard error what a run took, as far as the device tells: standard output is the runner's."""
    energy, sensors = samples["energy"], samples["temperatures"]
    joules = (
        energy if energy == UNAVAILABLE else ", ".join(f"{each['joules']:.1f} J {each['source']}" for each in energy)
    )
    hottest = sensors if sensors == UNAVAILABLE else f"up to {max(each['highest'] for each in sensors):.0f} degrees C"
    click.echo(f"device: energy {joules}; temperature {hottest}", err=True)
