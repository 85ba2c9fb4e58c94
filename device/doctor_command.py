"""``mobiedit-device doctor``: what a device is, what will work on it, and what it lacks for more."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from mobiedit.runtime.cli_support import CONTEXT_SETTINGS, ErrorCommand, echo_json
from mobiedit.runtime.errors import RequestError

from .cli_options import Connect, connect_by_adb
from .doctor import Works, judge, lines, report
from .facts import Facts, read_facts
from .local import LocalTransport
from .paths import DEFAULT_ROOT, check_root
from .qnn_wheel import QnnWheel, inspect


@click.command(cls=ErrorCommand, context_settings=CONTEXT_SETTINGS)
@click.option("--serial", help="Which device, when adb sees several.")
@click.option("--local", is_flag=True, help="Look at this machine; needs no adb.")
@click.option("--root", help=f"Where the runner and bundles will lie.  [default: {DEFAULT_ROOT}; with --local: here]")
@click.option("--python", help="The device's Python.  [default: python3; with --local: the one that runs this]")
@click.option(
    "--wheel",
    type=click.Path(path_type=Path, exists=True),
    help="Look into a wheel of onnxruntime-qnn for aarch64 instead, or a folder that it was unpacked into.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(
    context: click.Context,
    serial: str | None,
    local: bool,
    root: str | None,
    python: str | None,
    wheel: Path | None,
    as_json: bool,
) -> None:
    """Say what a device is, what will work on it, and what is missing for more.

    Exit code 1 says that nothing will work as it is, or that the wheel is not whole.
    """
    if wheel is not None:
        if local or serial:
            raise RequestError("--wheel looks at a file, not at a device: leave out --local and --serial")
        _show_wheel(inspect(wheel), as_json)
        return
    if local and serial:
        raise RequestError("--local looks at this machine, --serial names another: leave one of them out")
    connect: Connect = context.obj or connect_by_adb
    facts = _local_facts(root, python) if local else _device_facts(connect, serial, root, python)
    verdict = judge(facts)
    if as_json:
        echo_json(report(facts, verdict))
    else:
        for line in lines(facts, verdict):
            click.echo(line)
    sys.exit(1 if verdict.works is Works.NOTHING else 0)


def _device_facts(connect: Connect, serial: str | None, root: str | None, python: str | None) -> Facts:
    checked = check_root(root or DEFAULT_ROOT)
    return read_facts(connect(serial), checked, python or "python3")


def _local_facts(root: str | None, python: str | None) -> Facts:
    folder = Path(root or ".").absolute()
    if sys.platform == "win32":
        from .windows_facts import windows_facts

        return windows_facts(folder)
    return read_facts(LocalTransport(), str(folder), python or sys.executable)


def _show_wheel(found: QnnWheel, as_json: bool) -> None:
    if as_json:
        echo_json(asdict(found))
    else:
        click.echo(f"onnxruntime-qnn {found.version} for {found.platform}")
        click.echo(f"libraries     {', '.join(found.libraries)}")
        click.echo(f"skeletons     {', '.join(f'v{version}' for version in found.skeletons) or 'none'}")
        for failure in found.failures:
            click.echo(f"- {failure}")
        if not found.failures:
            click.echo("It is whole: every file has its recorded hash and is for the right processor.")
    sys.exit(1 if found.failures else 0)
