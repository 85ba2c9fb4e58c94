from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from mobiedit.device.errors import DeviceTimeout
from mobiedit.device.local import LocalTransport
from mobiedit.runtime.errors import StorageError

LOCAL = LocalTransport()


def python(script: str, *words: str) -> list[str]:
    return [sys.executable, "-I", "-c", script, *words]


def test_words_bytes_and_exit_code_reach_both_sides() -> None:
    script = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read()[::-1]); "
    script += "sys.stderr.write(sys.argv[1]); sys.exit(37)"
    done = LOCAL.run(python(script, "a 'b' $(c);\n"), stdin=b"\0\xff" * 100_000)
    assert (done.code, done.out, done.err) == (37, b"\xff\0" * 100_000, b"a 'b' $(c);\n")


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
def test_exit_code_when_a_signal_ended_it() -> None:
    assert LOCAL.run(python("import os; os.kill(os.getpid(), 9)")).code == 137


def test_exit_code_when_there_is_no_such_program(tmp_path: Path) -> None:
    done = LOCAL.run(["no-such-program-here"])
    assert (done.code, done.err) == (127, b"no-such-program-here: not found\n")
    (tmp_path / "text").write_text("no program")
    assert LOCAL.run([str(tmp_path / "text")]).code == 126


def test_a_program_that_reads_nothing_is_not_an_error() -> None:
    assert LOCAL.run(python("pass"), stdin=b"x" * 1_000_000).code == 0


def test_output_comes_while_the_program_runs() -> None:
    first = threading.Event()
    seen: list[tuple[bytes, bool]] = []

    def out(chunk: bytes) -> None:
        seen.append((chunk, worker.is_alive()))
        first.set()

    script = "import sys; print('one', flush=True); sys.stdin.read(); import time; time.sleep(0.5); print('two')"
    worker = threading.Thread(target=lambda: LOCAL.stream(python(script), out, lambda _: None, timeout=60))
    worker.start()
    assert first.wait(60)
    worker.join()
    assert b"".join(chunk for chunk, _ in seen).split() == [b"one", b"two"]
    assert seen[0] == (seen[0][0], True)


@pytest.mark.skipif(sys.platform == "win32", reason="groups of processes are POSIX's")
def test_children_end_as_well_when_the_time_is_up() -> None:
    child = "import time; time.sleep(600)"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    start = time.monotonic()
    with pytest.raises(DeviceTimeout, match="did not end within 1 s"):
        LOCAL.run(python(script), timeout=1)
    assert time.monotonic() - start < 300  # the child would have held the pipe open for 600 s


def test_a_copy_replaces_and_a_failure_leaves_the_old(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    with pytest.raises(StorageError, match="is missing"):
        LOCAL.push(tmp_path / "none", str(target))
    assert target.read_bytes() == b"old"
    LOCAL.push(source, str(target))
    LOCAL.pull(str(target), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "source", "target"]
