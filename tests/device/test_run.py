"""The runner on the device: its words, its output, its exit codes; a script stands for the device's Python here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mobiedit.device.errors import DeviceError, TransportError
from mobiedit.device.layout import BundlePlace, layout_at
from mobiedit.device.push import push_bundle
from mobiedit.device.run import RunResult, run_on_device
from mobiedit.runtime.errors import RequestError
from tests.device.local_transport import Cut, LocalTransport
from tests.device.small_bundle import write_bundle

ECHO = """#!/bin/sh
[ "$1" = -c ] && exit 0
printf '%s\\0' "$@"
echo progress >&2
exit ${CODE:-0}
"""


@pytest.fixture
def place(tmp_path: Path) -> BundlePlace:
    """A bundle on a device, and a runner that prints its arguments."""
    place = layout_at(str(tmp_path / "device")).bundle("it's; $(b)")
    push_bundle(LocalTransport(), place, write_bundle(tmp_path / "b"))
    install(place, ECHO)
    return place


def install(place: BundlePlace, script: str) -> None:
    python = Path(place.layout.runner_python)
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(script, encoding="utf-8")
    python.chmod(0o755)


def run(place: BundlePlace, *arguments: str, **options: Any) -> tuple[RunResult, bytes, bytes]:
    out, err = bytearray(), bytearray()
    result = run_on_device(LocalTransport(), place, arguments, out.extend, err.extend, **options)
    return result, bytes(out), bytes(err)


def test_run_gives_the_runner_its_words_with_the_bundle_first(place: BundlePlace) -> None:
    strange = ("--prompt", "a {} 'b' \"c\" ; $(d) `e`\nf \\", "--json", "", "é")
    result, out, err = run(place, "edit", *strange)
    words = out.decode().split("\0")[:-1]
    bundle = str((Path(place.folder) / "current").resolve())
    assert words == ["-m", "mobiedit.runtime.cli", "edit", bundle, *strange]
    assert (result.code, result.note, err) == (0, None, b"progress\n")


@pytest.mark.parametrize(("command", "shown"), [("edit", ["--progress"]), ("bench", ["--progress"]), ("ask", [])])
def test_run_asks_for_progress_where_there_is_some(place: BundlePlace, command: str, shown: list[str]) -> None:
    _, out, _ = run(place, command, "x", progress=True)
    assert out.decode().split("\0")[4:-1] == [*shown, "x"]


@pytest.mark.parametrize("code", [1, 2, 37])
def test_run_returns_the_exit_code(place: BundlePlace, code: int) -> None:
    install(place, ECHO.replace("${CODE:-0}", str(code)))
    assert run(place, "ask", "x")[0] == RunResult(code, None, None)


def test_run_explains_a_runner_that_was_killed(place: BundlePlace) -> None:
    install(place, '#!/bin/sh\n[ "$1" = -c ] && exit 0\nkill -9 $$\n')
    result, _, _ = run(place, "edit")
    assert result.code == 137
    assert result.note is not None
    assert "most likely because memory ran out" in result.note


def test_run_names_the_signal_when_it_is_a_rare_one(place: BundlePlace) -> None:
    install(place, '#!/bin/sh\n[ "$1" = -c ] && exit 0\nexit 159\n')
    assert run(place, "ask")[0].note == "exit code 159: signal 31 ended the runner"


def test_run_refuses_when_there_is_no_runner(place: BundlePlace) -> None:
    Path(place.layout.runner_python).unlink()
    with pytest.raises(DeviceError, match=r"no Python at .*/runner/current/bin/python: push it with .* --runner"):
        run(place, "ask", "x")


def test_run_refuses_when_the_named_python_is_not_there(place: BundlePlace) -> None:
    with pytest.raises(DeviceError, match=r"no Python at /no/python: give the path of one"):
        run(place, "ask", "x", python="/no/python")


def test_run_refuses_when_python_has_no_mobiedit(place: BundlePlace, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.write_text('#!/bin/sh\nexec python3 -I -S "$@"\n', encoding="utf-8")
    bare.chmod(0o755)
    with pytest.raises(DeviceError, match="bare on the device does not have mobiedit: push with --runner"):
        run(place, "ask", "x", python=str(bare))


def test_run_refuses_when_python_does_not_start(place: BundlePlace) -> None:
    install(place, "#!/bin/sh\necho 'version GLIBC_2.34 not found' >&2; exit 1\n")
    with pytest.raises(DeviceError, match=r"does not run, exit code 1 \(version GLIBC_2.34 not found\)"):
        run(place, "ask", "x")


@pytest.mark.parametrize("arguments", [(), ("report",), ("--help",), ("rm",)])
def test_run_refuses_other_commands(place: BundlePlace, arguments: tuple[str, ...]) -> None:
    with pytest.raises(RequestError, match="is no command for a bundle: write one of ask, bench, edit"):
        run(place, *arguments)


class Sampler:
    """Counts how it was called."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def start(self) -> None:
        self.calls.append("start")

    def stop(self) -> dict[str, Any]:
        self.calls.append("stop")
        return {"joules": 1.5}


def test_run_samples_around_the_runner(place: BundlePlace) -> None:
    result, _, _ = run(place, "list", sampler=(sampler := Sampler()))
    assert json.dumps(result.samples) == '{"joules": 1.5}'
    assert sampler.calls == ["start", "stop"]


def test_run_says_how_to_see_what_happened_when_the_link_is_cut(place: BundlePlace) -> None:
    sampler = Sampler()
    with pytest.raises(TransportError, match="cut: connect again; an edit is committed whole or not at all: see"):
        run_on_device(
            Cut(LocalTransport(), 2, done=False), place, ["edit"], lambda _: None, lambda _: None, sampler=sampler
        )
    assert sampler.calls == ["start", "stop"]
