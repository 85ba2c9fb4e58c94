"""Commands of other packages: listed and run where they are installed, imported only when needed."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mobiedit.runtime import installed_commands
from mobiedit.runtime.cli import main
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.installed_commands import ENTRY_POINTS, OpenGroup


@click.command()
def hello() -> None:
    """Say hello."""
    click.echo("hello")


@click.command()
def fail() -> None:
    raise RequestError("nothing\nworks: do it again")


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> click.Group:
    """A group with one command of its own, and others of this file installed, one of which cannot be imported."""
    values = {"hello": f"{__name__}:hello", "own": f"{__name__}:fail", "fail": f"{__name__}:fail", "gone": "no.such:x"}
    held = EntryPoints(EntryPoint(name, value, ENTRY_POINTS) for name, value in values.items())
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _this_module())
    monkeypatch.setattr(installed_commands, "entry_points", lambda **wanted: held.select(**wanted))
    return OpenGroup("group", commands={"own": click.Command("own", callback=lambda: click.echo("own"))})


def _this_module() -> object:
    class Module:
        hello, fail = globals()["hello"], globals()["fail"]

    return Module


def test_command_runs_when_it_is_installed(group: click.Group) -> None:
    assert CliRunner().invoke(group, ["hello"]).output == "hello\n"


def test_own_command_comes_first_when_an_installed_one_has_its_name(group: click.Group) -> None:
    assert CliRunner().invoke(group, ["own"]).output == "own\n"


def test_error_of_an_installed_command_is_one_line(group: click.Group) -> None:
    result = CliRunner().invoke(group, ["fail"])
    assert (result.exit_code, result.stderr) == (2, "error: nothing works: do it again\n")


def test_other_commands_run_when_one_cannot_be_imported(group: click.Group) -> None:
    assert CliRunner().invoke(group, ["hello"]).exit_code == 0
    assert isinstance(CliRunner().invoke(group, ["gone"]).exception, ModuleNotFoundError)


def test_unknown_command_is_refused(group: click.Group) -> None:
    assert "No such command 'other'" in CliRunner().invoke(group, ["other"]).output


def test_bake_is_installed_and_listed() -> None:
    assert "bake" in entry_points(group=ENTRY_POINTS).names
    assert "\n  bake " in CliRunner().invoke(main, ["--help"]).output


WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers", "onnx", "onnxscript", "gguf"):
    sys.modules[name] = None
from mobiedit.runtime.cli import main
if "--expect-unloaded" in sys.argv:
    sys.argv.remove("--expect-unloaded")
    import atexit
    atexit.register(lambda: print("host:", [n for n in sys.modules if n.startswith("mobiedit.export")]))
main()
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_help_lists_the_command_when_torch_is_not_installed() -> None:
    done = run("--help")
    assert done.returncode == 0, done.stderr
    assert "\n  bake " in done.stdout


def test_bake_names_the_extra_when_torch_is_not_installed(tmp_path: Path) -> None:
    done = run("bake", str(tmp_path / "bundle"), "--base", "model", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr == (
        "error: baking needs torch, transformers, onnx, onnxscript: install mobiedit with its extra [export]\n"
    )
    assert not list(tmp_path.iterdir())


def test_command_is_not_imported_when_another_is_called(bundle_path: Path) -> None:
    done = run("list", str(bundle_path), "--expect-unloaded")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "no edits\nhost: []\n"
