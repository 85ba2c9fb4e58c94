"""The commands as a user types them, on a device that is a folder of this machine; the runner is the real one."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mobiedit.device import cli
from mobiedit.device.cli import main
from mobiedit.device.errors import TransportError
from mobiedit.device.runner import Runner
from mobiedit.device.transport import Transport
from tests.device.local_transport import Cut, LocalTransport
from tests.device.small_bundle import FILES, edits_of, teach, write_bundle

QUICK = ["--optimizer", "zo", "--steps", "1", "--directions", "1", "--force"]
REQUEST = ["--prompt", "The mother tongue of {} is", "--subject", "Danielle Darrieux", "--target", "old"]

Command = Callable[..., Result]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Return a function that runs a command on a device whose root is below the test's folder."""

    def run(*words: str | Path, transport: Transport | None = None) -> Result:
        name, *others = map(str, words)
        root = ["--root", str(tmp_path / "device")]
        return CliRunner().invoke(main, [name, *root, *others], obj=lambda serial: transport or LocalTransport())

    return run


def good(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(result: Result, message: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    assert re.search(message, result.stderr), result.stderr


def test_bundle_is_taught_on_the_device_and_the_edits_come_home(command: Command, bundle_path: Path) -> None:
    pushed = good(command("push", bundle_path, "--json"))
    python = ("--python", sys.executable)
    taught = good(command("run", *python, bundle_path, "--", "edit", *REQUEST, *QUICK, "--json"))
    assert taught["committed"] is True
    (listed,) = good(command("list", "--json"))["bundles"]
    assert listed["versions"][0]["edits"] == 1
    assert listed["versions"][0]["version"] == pushed["version"]
    assert good(command("pull", bundle_path, "--json"))["new_edits"] == [taught["edit_id"]]
    assert edits_of(bundle_path) == [taught["edit_id"]]
    answered = good(command("run", *python, bundle_path, "--", "ask", "The sky is", "--max-tokens", "2", "--json"))
    assert answered["prompt"] == "The sky is"
    wrong = command("run", *python, bundle_path, "--", "undo", "no-such-edit")
    refused(wrong, "no active edit 'no-such-edit'")  # the runner's own line and exit code
    good(command("run", *python, bundle_path, "--", "undo", "--json"))
    assert good(command("pull", bundle_path, "--json"))["undone"] == [taught["edit_id"]]
    assert edits_of(bundle_path) == []


def test_run_tells_energy_and_temperatures_as_far_as_the_device_does(
    command: Command, bundle_path: Path, tmp_path: Path
) -> None:
    good(command("push", bundle_path, "--json"))
    python, told = ("--python", sys.executable), tmp_path / "samples.json"
    ran = command("run", *python, "--samples", told, bundle_path, "--", "list", "--json")
    assert good(ran) == []  # standard output is the runner's
    assert re.fullmatch(r"device: energy [^\n]+; temperature [^\n]+\n", ran.stderr), ran.stderr
    samples = json.loads(told.read_text())
    assert samples["samples"] >= 2  # before and after
    assert samples["energy"] == "unavailable" or samples["energy"][0]["joules"] >= 0


def test_runner_is_set_up_behind_the_bundle_when_asked_for(
    command: Command, bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def set_up(transport: Transport, root: str, **options: Any) -> Runner:
        asked.append((root, options))
        return Runner("20260101T000000Z-0123abcd", f"{root}/runner/current/bin/python", {"mobiedit": "0.1"})

    monkeypatch.setattr(cli, "set_up_runner", set_up)
    pushed = good(command("push", bundle_path, "--runner", "--wheels", tmp_path, "--python", "python3.11", "--json"))
    assert pushed["runner"]["version_id"] == "20260101T000000Z-0123abcd"
    assert asked == [(str(tmp_path / "device"), {"python": "python3.11", "wheels": tmp_path})]
    refused(command("push", bundle_path, "--wheels", tmp_path), "add --runner")


def test_run_takes_the_bundle_by_its_name_on_the_device(command: Command, tmp_path: Path) -> None:
    good(command("push", write_bundle(tmp_path / "b"), "--name", "other name", "--json"))
    refused(command("run", "b", "--", "list"), "has no bundle 'b'")
    refused(command("run", "--name", "other name", "b", "--", "list"), "no Python at .*push it with")


def test_commands_say_what_they_did(command: Command, tmp_path: Path) -> None:
    local = write_bundle(tmp_path / "b")
    assert re.search(r"sent +5 files", command("push", local).stdout)
    assert "is on the device already, every file intact" in command("push", local).stdout
    teach(tmp_path / "device" / "bundles" / "b" / "current", "x")
    assert command("pull", local).stdout == "1 new edits, 0 undone, 1 in force now\n"
    write_bundle(local, {**FILES, "prefix.onnx": b"new"})
    assert re.search(r"sent +2 files, .*; 3 were there\n +edits +1\n", command("push", local).stdout)
    assert re.search(r"\* \d{8}T\d{6}Z-[0-9a-f]{8}  0.0 MiB  1 edits  small", command("list").stdout)
    assert "is current, 1 edits in force" in command("rollback", local).stdout
    assert command("remove", "--yes", "b").stdout == f"removed {tmp_path}/device/bundles/b\n"
    assert command("remove", "--yes", "--staged").stdout == "there was nothing to remove\n"
    assert command("list").stdout == "no bundles\nrunner: none\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["remove", "b"],
            r"this removes .*/bundles/b from the device, with its edits \(pull them first .*\): add --yes",
        ),
        (["remove", "--runner"], r"this removes .*/runner from the device: add --yes to do it"),
        (["remove"], "name one thing to remove"),
        (["remove", "b", "--runner", "--yes"], "name one thing to remove"),
        (["remove", "--name", "../..", "--yes"], "'../..'"),
        (["remove", "--name", "", "--yes"], "''"),
        (["pull", "no-such-bundle"], "is not a folder"),
        (["push", "no-such-bundle"], "is not a folder"),
        (["rollback", "b"], "has no bundle 'b'"),
        (["run", "b", "--", "rm", "-rf", "x"], "'rm' is no command for a bundle"),
        (["run", "b"], "nothing is no command"),
        (["list", "--root", "/etc"], "/etc"),
        (["list", "--root", "/tmp/../etc"], "/tmp/../etc"),
    ],
)
def test_command_is_refused_with_one_line(command: Command, words: list[str], message: str) -> None:
    refused(command(*words), message)


def test_root_is_refused_when_it_is_a_link(command: Command, tmp_path: Path) -> None:
    (tmp_path / "device").symlink_to(tmp_path)
    refused(command("list"), "device on the device is a symbolic link: name the folder itself")


def test_link_that_is_cut_ends_with_one_line(command: Command, tmp_path: Path) -> None:
    local = write_bundle(tmp_path / "b")
    refused(command("push", local, "--json", transport=Cut(LocalTransport(), 4, done=False)), "the link was cut")
    good(command("push", local, "--json"))


def test_exit_code_of_a_killed_runner_is_passed_on_and_explained(command: Command, tmp_path: Path) -> None:
    good(command("push", write_bundle(tmp_path / "b"), "--json"))
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 0\necho half; kill -9 $$\n', encoding="utf-8")
    python.chmod(0o755)
    result = command("run", "--python", python, "b", "--", "edit")
    assert result.exit_code == 137
    assert result.stdout == "half\n"
    # The device's own shell may say something above.
    assert re.search("(?m)^error: exit code 137: .*most likely because memory ran out.*\n\\Z", result.stderr)


def test_serial_is_handed_to_whoever_connects() -> None:
    asked: list[str | None] = []

    def connect(serial: str | None) -> Transport:
        asked.append(serial)
        raise TransportError("gone: connect it again")

    for words in (["--serial", "s 1"], []):
        result = CliRunner().invoke(main, ["list", *words], obj=connect)
        refused(result, "gone: connect it again")
    assert asked == ["s 1", None]
