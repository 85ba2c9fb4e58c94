"""What the device tool's commands share: options, the connection, where things are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from .adb import AdbTransport
from .adb_devices import choose
from .adb_program import find_adb
from .layout import BundlePlace, Layout, bundle_name, layout_at
from .paths import DEFAULT_ROOT, refuse_links
from .transport import Transport

Connect = Callable[[str | None], Transport]
"""Makes a connection to the device of a serial, or to the only one."""

root_option = click.option("--root", default=DEFAULT_ROOT, help="The folder on the device that holds everything.")
serial_option = click.option("--serial", help="Which device, when adb sees several.", show_default=False)
name_option = click.option(
    "--name", help="What the bundle is called on the device; as its folder when left out.", show_default=False
)
break_lock_option = click.option("--break-lock", is_flag=True, help="Take the device's lock whoever holds it.")


def connect_by_adb(serial: str | None) -> Transport:
    """Return a connection to the device of a serial, or to the only one."""
    program = find_adb()
    return AdbTransport(program, choose(program, serial).serial)


def reach(context: click.Context, serial: str | None, root: str) -> tuple[Transport, Layout]:
    """Return a connection and what is below a root that is allowed and leads nowhere else."""
    layout = layout_at(root)
    connect: Connect = context.obj
    transport = connect(serial)
    refuse_links(transport, layout.root)
    return transport, layout


def place_of(layout: Layout, bundle: Path, name: str | None) -> BundlePlace:
    """Return where a bundle is on the device, by its name there or by its folder's."""
    return layout.bundle(bundle_name(bundle) if name is None else name)
