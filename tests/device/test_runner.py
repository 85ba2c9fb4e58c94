"""A runner is installed on this machine, below a root of its own, from real wheels and with no network."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mobiedit.device.errors import DeviceError, TransportError
from mobiedit.device.local import LocalTransport
from mobiedit.device.runner import push_runner, runner_python
from mobiedit.device.transport import Completed
from mobiedit.device.wheels import Wheels
from mobiedit.runtime import open_bundle
from tests.device.installed_wheels import repack, wheels_of

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="wheels for this machine are for glibc")

PYTHON = str(Path(sys.executable).resolve())
ABSENT_GLIBC = (2, 99)


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "a root; it's $HOME")


class CutTransport(LocalTransport):
    """A connection that fails at the n-th call, and counts what it sends."""

    def __init__(self, cut: int | None = None) -> None:
        self.calls, self.cut, self.sent = 0, cut, list[str]()

    def run(self, words: Sequence[str], *, stdin: bytes = b"", timeout: float = 60.0) -> Completed:
        self._count()
        return super().run(words, stdin=stdin, timeout=timeout)

    def push(self, source: Path, target: str, *, timeout: float = 3600.0) -> None:
        self._count()
        self.sent.append(Path(target).name)
        super().push(source, target, timeout=timeout)

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self.cut:
            raise TransportError("the link was cut: try again")


def test_runner_answers_as_this_environment_does(runner_wheels: Wheels, root: str, fp32_bundle: Path) -> None:
    transport = LocalTransport()
    runner = push_runner(transport, root, runner_wheels, PYTHON)
    assert runner.python == runner_python(root)
    assert runner.versions["mobiedit"] == "0.1.0"
    words = [runner.python, "-m", "mobiedit.runtime.cli", "ask", str(fp32_bundle), "Paris is", "--max-tokens", "3"]
    done = transport.run([*words, "--json"])
    assert done.code == 0, done.err
    assert json.loads(done.out)["answer"] == open_bundle(fp32_bundle).ask("Paris is", 3)
    # Nothing of this environment or the system's is seen in there.
    assert transport.run([runner.python, "-c", "import torch"]).code == 1
    assert push_runner(transport, root, runner_wheels, PYTHON) == runner  # nothing to do


# What the rest is about does not need the real packages.


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Wheels]:
    """Wheels of two small packages, one of which differs each time."""
    monkeypatch.setattr("mobiedit.device.runner._TRY", "import json, click; print(json.dumps({'click': '1'}))")
    folder = tmp_path / "wheels"
    folder.mkdir()
    repack("click", folder)
    count = iter(range(100))

    def make() -> Wheels:
        path = repack("filelock", folder)
        path.write_bytes(path.read_bytes() + b"\0" * (next(count) % 7 + 1))  # as a ZIP archive's comment, ignored
        return wheels_of(folder)

    return make


def current(root: str) -> str:
    return str((Path(root) / "runner" / "current").readlink())


def test_one_version_before_is_kept_and_only_changes_are_sent(small: Callable[[], Wheels], root: str) -> None:
    seen = []
    for _ in range(3):
        transport = CutTransport()
        push_runner(transport, root, small(), PYTHON)
        seen.append(current(root))
    assert [name.split("-")[0] for name in transport.sent] == ["filelock", "runner.json"]
    kept = sorted(f"versions/{path.name}" for path in (Path(root) / "runner" / "versions").iterdir())
    assert kept == sorted(seen[1:])
    assert not [path for path in Path(root).iterdir() if path.name.startswith(".")]


def test_a_push_that_is_cut_at_any_call_leaves_the_old_runner_and_goes_on(
    small: Callable[[], Wheels], root: str
) -> None:
    push_runner(LocalTransport(), root, small(), PYTHON)
    counted = CutTransport()
    push_runner(counted, root, small(), PYTHON)
    for cut in range(1, counted.calls + 1):
        before, wheels = current(root), small()
        with pytest.raises(TransportError):
            push_runner(CutTransport(cut), root, wheels, PYTHON)
        assert LocalTransport().run([runner_python(root), "-c", "import click"]).code == 0
        again = CutTransport()
        push_runner(again, root, wheels, PYTHON)
        assert current(root) != before
        assert not {"click-8"} & {name[:7] for name in again.sent}


def test_a_file_that_changed_on_the_way_is_refused(small: Callable[[], Wheels], root: str) -> None:
    class Damaging(LocalTransport):
        def push(self, source: Path, target: str, *, timeout: float = 3600.0) -> None:
            super().push(source, target, timeout=timeout)
            if target.endswith(".whl"):
                Path(target).write_bytes(b"damaged")

    with pytest.raises(DeviceError, match="was changed on the way: push again"):
        push_runner(Damaging(), root, small(), PYTHON)
    assert not (Path(root) / "runner" / "current").exists()
    push_runner(LocalTransport(), root, small(), PYTHON)


def test_a_runner_that_does_not_start_is_not_made_current(
    small: Callable[[], Wheels], root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_runner(LocalTransport(), root, small(), PYTHON)
    before = current(root)
    monkeypatch.setattr("mobiedit.device.runner._TRY", "raise ImportError('libfoo.so: no such file')")
    with pytest.raises(DeviceError, match=r"does not start \(ImportError: libfoo\.so: no such file\): see what"):
        push_runner(LocalTransport(), root, small(), PYTHON)
    assert current(root) == before


def test_another_python_or_glibc_is_refused_with_both_versions(small: Callable[[], Wheels], root: str) -> None:
    folder = small().folder
    with pytest.raises(DeviceError, match=r"for \S+ and Python 3\.99, the device has"):
        push_runner(LocalTransport(), root, wheels_of(folder, python=(3, 99)), PYTHON)
    with pytest.raises(DeviceError, match=r"for glibc 2\.99, the device has glibc"):
        push_runner(LocalTransport(), root, wheels_of(folder, glibc=ABSENT_GLIBC), PYTHON)


def test_a_device_without_python_is_told_what_to_install(small: Callable[[], Wheels], root: str) -> None:
    with pytest.raises(DeviceError, match="has no python-that-is-not: install it"):
        push_runner(LocalTransport(), root, small(), "python-that-is-not")
    assert not Path(root).exists()


def test_a_full_disk_leaves_the_old_runner_and_says_what_to_do(small: Callable[[], Wheels], root: str) -> None:
    class Full(LocalTransport):
        """Files end at 20 blocks of 512 bytes, which to a program is a disk that refuses."""

        def run(self, words: Sequence[str], *, stdin: bytes = b"", timeout: float = 60.0) -> Completed:
            limited = ["sh", "-c", 'ulimit -f 20 && exec "$@"', "sh", *words]
            return super().run(limited, stdin=stdin, timeout=timeout)

    push_runner(LocalTransport(), root, small(), PYTHON)
    before = current(root)
    with pytest.raises(DeviceError, match=r"cannot be installed \(File too large.*: free some space there"):
        push_runner(Full(), root, small(), PYTHON)
    assert current(root) == before
    assert LocalTransport().run([runner_python(root), "-c", "import click"]).code == 0


def test_a_root_that_is_a_link_is_refused(small: Callable[[], Wheels], root: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    Path(root).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DeviceError, match="symbolic link"):
        push_runner(LocalTransport(), root, small(), PYTHON)
