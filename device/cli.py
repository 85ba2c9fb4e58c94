"""``mobiedit-device``: put a bundle on a device, run it there, bring the edits home."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import click
from tqdm import tqdm

from mobiedit.runtime.cli_support import CONTEXT_SETTINGS, ErrorGroup, bundle_argument, echo_json, json_option
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.files import storage_errors

from .cli_options import (
    break_lock_option,
    connect_by_adb,
    name_option,
    place_of,
    reach,
    root_option,
    serial_option,
)
from .doctor_command import doctor
from .listing import list_device
from .lock import device_lock
from .printing import print_listing, print_push, print_runner, print_samples
from .pull import pull_edits
from .push import PushConfig, push_bundle
from .remove import remove_bundle, remove_runner, remove_staged
from .rollback import rollback
from .run import run_on_device
from .runner_setup import set_up_runner
from .sampling import Sampler


@click.group(cls=ErrorGroup, context_settings=CONTEXT_SETTINGS)
@click.version_option(package_name="mobiedit")
@click.pass_context
def main(context: click.Context) -> None:
    """Put a bundle and the runner on a device over adb, run it there, bring the edits home.

    BUNDLE is the bundle's folder on this machine; on the device it has the folder's name.
    """
    context.obj = context.obj or connect_by_adb  # a test gives another way to connect


@main.command()
@bundle_argument
@name_option
@click.option("--runner", is_flag=True, help="Install the runner too: mobiedit with all that it needs, from wheels.")
@click.option("--python", default="python3", help="The device's Python that the runner is for.")
@click.option(
    "--wheels",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Wheels that were fetched before, for a host without a network.",
)
@click.option("--drop-edits", is_flag=True, help="Leave the device's edits behind when they are of another base.")
@break_lock_option
@root_option
@serial_option
@json_option
@click.pass_context
def push(
    context: click.Context,
    bundle: Path,
    name: str | None,
    runner: bool,
    python: str,
    wheels: Path | None,
    drop_edits: bool,
    break_lock: bool,
    root: str,
    serial: str | None,
    as_json: bool,
) -> None:
    """Bring BUNDLE to the device and make it the current version there, with the edits of both sides.

    Only what the device does not have is sent, all of it is verified there, and the former version stays for a
    rollback. A push that was cut goes on where it ended when it is given again.
    """
    if wheels and not runner:
        raise RequestError("--wheels are the runner's: add --runner, or leave them out")
    transport, layout = reach(context, serial, root)
    with tqdm(desc="push", unit="B", unit_scale=True, disable=as_json or None) as bar:
        result = push_bundle(
            transport,
            place_of(layout, bundle, name),
            bundle,
            PushConfig(drop_edits, break_lock),
            lambda _, size: _update(bar, size),
        )
    if not as_json:
        print_push(result)
    installed = None
    if runner:
        with device_lock(transport, layout, "push the runner", break_lock=break_lock):
            installed = set_up_runner(transport, layout.root, python=python, wheels=wheels)
        if not as_json:
            print_runner(installed)
    if as_json:
        echo_json({**result.to_dict(), "runner": None if installed is None else asdict(installed)})


@main.command(context_settings={"allow_interspersed_args": False})
@bundle_argument
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="-- COMMAND [OPTIONS]")
@name_option
@click.option("--python", help="A Python on the device that has mobiedit, instead of the pushed runner.")
@click.option(
    "--samples",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the energy and the temperatures that the device told during the run, as JSON.",
)
@root_option
@serial_option
@click.pass_context
def run(
    context: click.Context,
    bundle: Path,
    arguments: tuple[str, ...],
    name: str | None,
    python: str | None,
    samples: Path | None,
    root: str,
    serial: str | None,
) -> None:
    """Run `mobiedit COMMAND BUNDLE OPTIONS` on the device; its output and exit code are this command's.

    For example: run my.bundle -- edit --prompt "My {}'s name is" --subject dentist --target "Dr. Chen". Paths in
    OPTIONS are paths on the device. This command's own options come before BUNDLE.
    """
    transport, layout = reach(context, serial, root)
    command = arguments[1:] if arguments[:1] == ("--",) else arguments
    out, err = _writer(sys.stdout.buffer), _writer(sys.stderr.buffer)
    result = run_on_device(
        transport,
        place_of(layout, bundle, name),
        command,
        out,
        err,
        python=python,
        progress=sys.stderr.isatty(),
        sampler=Sampler(transport),
    )
    if result.note:
        click.echo(f"error: {result.note}", err=True)
    if result.samples is not None and result.code == 0:
        print_samples(result.samples)
    if samples:
        with storage_errors(f"write {samples}"):
            samples.write_text(json.dumps(result.samples, indent=2) + "\n")
    sys.exit(result.code)


@main.command()
@bundle_argument
@name_option
@root_option
@serial_option
@json_option
@click.pass_context
def pull(context: click.Context, bundle: Path, name: str | None, root: str, serial: str | None, as_json: bool) -> None:
    """Bring the edits that were made on the device home into BUNDLE; those that were made here stay."""
    transport, layout = reach(context, serial, root)
    result = pull_edits(transport, place_of(layout, bundle, name), bundle)
    if as_json:
        echo_json(result.to_dict())
        return
    click.echo(f"{len(result.new_edits)} new edits, {len(result.undone)} undone, {result.edits} in force now")
    if result.forgotten:
        click.echo(f"forgotten on the device, erased here too: {', '.join(result.forgotten)}")
    if result.replaced:
        click.echo(f"replaced by the device's edits of the same facts: {', '.join(result.replaced)}")


@main.command(name="rollback")
@bundle_argument
@name_option
@click.option("--drop-edits", is_flag=True, help="Leave edits behind that are of another base.")
@break_lock_option
@root_option
@serial_option
@json_option
@click.pass_context
def rollback_command(
    context: click.Context,
    bundle: Path,
    name: str | None,
    drop_edits: bool,
    break_lock: bool,
    root: str,
    serial: str | None,
    as_json: bool,
) -> None:
    """Make the previous version of BUNDLE current on the device; the edits come along."""
    transport, layout = reach(context, serial, root)
    place = place_of(layout, bundle, name)
    result = rollback(transport, place, drop_edits=drop_edits, break_lock=break_lock)
    if as_json:
        echo_json(result.to_dict())
    else:
        click.echo(f"{result.version} is current, {result.edits} edits in force; {result.former} is kept")


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@name_option
@click.option("--runner", is_flag=True, help="Remove the runner.")
@click.option("--staged", is_flag=True, help="Remove what pushes that were cut have left.")
@click.option("--yes", is_flag=True, help="Do it.")
@break_lock_option
@root_option
@serial_option
@json_option
@click.pass_context
def remove(
    context: click.Context,
    bundle: Path | None,
    name: str | None,
    runner: bool,
    staged: bool,
    yes: bool,
    break_lock: bool,
    root: str,
    serial: str | None,
    as_json: bool,
) -> None:
    """Remove BUNDLE from the device, with its versions and edits; or the runner, or what was staged."""
    bundle_named = bundle is not None or name is not None
    if bundle_named + runner + staged != 1:
        raise RequestError("name one thing to remove: a BUNDLE, --runner or --staged")
    transport, layout = reach(context, serial, root)
    place = place_of(layout, bundle or Path(), name) if bundle_named else None
    what = place.folder if place else layout.runner if runner else f"{layout.root}/.staging-*"
    if not yes:
        edits = ", with its edits (pull them first if they matter)" if place else ""
        raise RequestError(f"this removes {what} from the device{edits}: add --yes to do it")
    if place:
        removed: tuple[str, ...] = (remove_bundle(transport, place, break_lock=break_lock),)
    elif runner:
        removed = (remove_runner(transport, layout, break_lock=break_lock),)
    else:
        removed = remove_staged(transport, layout, break_lock=break_lock)
    if as_json:
        echo_json({"removed": list(removed)})
    else:
        click.echo("\n".join(f"removed {path}" for path in removed) or "there was nothing to remove")


@main.command(name="list")
@root_option
@serial_option
@json_option
@click.pass_context
def list_command(context: click.Context, root: str, serial: str | None, as_json: bool) -> None:
    """List the bundles on the device, their versions, sizes and edits."""
    transport, layout = reach(context, serial, root)
    listing = list_device(transport, layout)
    if as_json:
        echo_json(listing.to_dict())
    else:
        print_listing(listing)


main.add_command(doctor)


def _update(bar: tqdm[Any], size: int) -> None:
    bar.update(size)


def _writer(stream: BinaryIO) -> Callable[[bytes], None]:
    def write(data: bytes) -> None:
        stream.write(data)
        stream.flush()

    return write


if __name__ == "__main__":
    main()
