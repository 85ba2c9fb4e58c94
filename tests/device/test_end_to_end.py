"""From one end to the other: the real adb client, a daemon of the tests, a real shell, the real runner."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from contextlib import suppress
from importlib.metadata import version as told_version
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mobiedit.device.cli import main
from mobiedit.device.errors import TransportError
from mobiedit.device.layout import layout_at
from mobiedit.device.push import push_bundle
from mobiedit.device.wheels import MANIFEST, Wheels
from mobiedit.runtime import open_bundle
from tests.device.conftest import AdbDevice
from tests.device.small_bundle import FILES, edits_of, require_whole, teach, write_bundle

QUICK = ["--optimizer", "zo", "--steps", "1", "--directions", "1", "--force", "--json"]
STRIDE = 37
"""Messages between two cuts of a push: one at each of them takes four minutes (set it to 1)."""

REQUEST = ["--prompt", "The mother tongue of {} is", "--subject", "Danielle Darrieux", "--target", "old"]


def command(device: AdbDevice, name: str, *words: str | Path, code: int = 0) -> Any:
    """Run a command on the device and return its JSON."""
    root = ["--root", str(device.root / "it's; $(root)")]
    result = CliRunner().invoke(main, [name, *root, *map(str, words)], obj=lambda serial: device.transport)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if code == 0 else result.stderr


def test_bundle_lives_on_a_device_from_push_to_rollback(adb_device: AdbDevice, bundle_path: Path) -> None:
    first = command(adb_device, "push", bundle_path, "--json")
    run = ("run", "--python", sys.executable, bundle_path, "--")
    taught = command(adb_device, *run, "edit", *REQUEST, *QUICK)
    asked = command(adb_device, *run, "ask", "The mother tongue of Danielle Darrieux is", "--json")

    manifest = json.loads((bundle_path / "manifest.json").read_text("utf-8"))
    manifest["statistics"]["note"] = "a second export"
    (bundle_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    adb_device.daemon.vanish()
    assert "error: " in command(adb_device, "push", bundle_path, "--json", code=2)
    adb_device.daemon.come_back()
    adb_device.server.connect(adb_device.daemon)
    second = command(adb_device, "push", bundle_path, "--json")
    assert (second["previous"], second["files"]["sent_files"], second["edits"]) == (first["version"], 1, 1)
    assert command(adb_device, *run, "ask", "The mother tongue of Danielle Darrieux is", "--json") == asked

    assert command(adb_device, "pull", bundle_path, "--json")["new_edits"] == [taught["edit_id"]]
    command(adb_device, *run, "undo", "--json")
    rolled = command(adb_device, "rollback", bundle_path, "--json")
    assert (rolled["version"], rolled["edits"]) == (first["version"], 0)
    assert command(adb_device, "pull", bundle_path, "--json")["undone"] == [taught["edit_id"]]
    assert edits_of(bundle_path) == []
    assert "refused" not in command(adb_device, *run, "undo", code=2)  # nothing left: the runner's own refusal


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="wheels for this machine are for glibc")
def test_runner_is_pushed_with_a_bundle_and_teaches_there(
    adb_device: AdbDevice, bundle_path: Path, runner_wheels: Wheels, tmp_path: Path
) -> None:
    python = ("--python", str(Path(sys.executable).resolve()))
    told = command(adb_device, "doctor", *python, "--json")
    assert told["verdict"]["works"] in ("cpu", "npu")
    wheels = Path(shutil.copytree(runner_wheels.folder, tmp_path / "wheels"))
    (wheels / MANIFEST).write_bytes(runner_wheels.manifest_bytes)
    pushed = command(adb_device, "push", bundle_path, "--runner", "--wheels", wheels, *python, "--json")
    assert pushed["runner"]["versions"]["onnxruntime"] == told_version("onnxruntime")
    taught = command(adb_device, "run", bundle_path, "--", "edit", *REQUEST, *QUICK)  # by the pushed runner
    asked = command(
        adb_device, "run", bundle_path, "--", "ask", "Danielle Darrieux speaks", "--max-tokens", "3", "--json"
    )
    assert command(adb_device, "pull", bundle_path, "--json")["new_edits"] == [taught["edit_id"]]
    assert asked["answer"] == open_bundle(bundle_path).ask("Danielle Darrieux speaks", 3)  # the same there and here


def test_push_completes_after_the_link_was_cut_at_any_message(adb_device: AdbDevice, tmp_path: Path) -> None:
    """At every call: see the tests of push. Here the daemon itself cuts, so adb's own troubles come with it."""
    local = write_bundle(tmp_path / "b")
    place = layout_at(str(adb_device.root / "root")).bundle("b")
    push_bundle(adb_device.transport, place, local)
    current = Path(place.folder) / "current"
    teach(current, "x")
    write_bundle(local, {**FILES, "prefix.onnx": b"new"})
    shutil.copytree(place.layout.root, tmp_path / "before", symlinks=True)
    begin = adb_device.daemon.faults.messages
    push_bundle(adb_device.transport, place, local)
    messages = adb_device.daemon.faults.messages - begin
    for message in range(1, messages * 4 // 5, STRIDE):  # how many there are varies a little
        while Path(place.layout.root).exists():  # what a cut command still does there can get in between
            shutil.rmtree(place.layout.root, ignore_errors=True)
        shutil.copytree(tmp_path / "before", place.layout.root, symlinks=True)
        before, after = require_whole(current.resolve()), require_whole(local)
        adb_device.daemon.faults.cut_after(message)
        try:
            push_bundle(adb_device.transport, place, local)
        except TransportError:
            assert require_whole(current.resolve()) in (before, after), message
            assert edits_of(current) == ["x"], message
            for attempt in range(3):  # as a user does: adb may still be busy with the old connection
                adb_device.server.connect(adb_device.daemon)
                with suppress(*[TransportError] * (attempt < 2)):
                    push_bundle(adb_device.transport, place, local)
                    break
        assert adb_device.daemon.faults.cut_at is None  # it was cut
        assert require_whole(current.resolve()) == after, message
        assert edits_of(current) == ["x"], message
        # A lock that a cut left is taken over by the next push.
        assert {path.name for path in Path(place.layout.root).iterdir()} - {".lock"} == {"bundles"}, message
