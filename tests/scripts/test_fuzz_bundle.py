"""The fuzz run, short; and that it sees what it is there to see."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from scripts.fuzz_bundle import main
from scripts.support.fuzz_mutations import bytes_mutated, json_mutated
from scripts.support.fuzz_sandbox import Sandbox

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links, pipes and limits of memory are POSIX's")


def test_mutated_bundles_are_accepted_or_refused(tmp_path: Path, run: Callable[..., Result]) -> None:
    out, findings = tmp_path / "fuzz.json", tmp_path / "findings"
    run(main, ["--cases", 300, "--seed", 7, "--workers", 1, "--out", out, "--findings", findings])
    record = json.loads(out.read_text("utf-8"))
    assert (record["cases"], record["findings"]) == (300, [])
    assert {"accepted", "BundleError", "JournalError"} <= set(record["outcomes"])
    assert sum(record["outcomes"].values()) == 300
    assert len(record["mutations"]) >= 10
    assert str(tmp_path) not in record["command"]
    assert not findings.exists()


def test_case_is_the_same_when_it_is_made_again(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        sandbox = Sandbox(tmp_path / name)
        case = sandbox.make(5, 7)
        files = sorted(path for path in sandbox.folder.rglob("*") if path.is_file() and not path.is_symlink())
        made.append((case, [path.read_bytes() for path in files if path.name != "journal"]))
    assert made[0] == made[1]


@pytest.mark.parametrize("seed", range(20))
def test_mutations_change_their_input(seed: int) -> None:
    rng = random.Random(seed)
    data = bytes(range(1, 200))
    changed = [bytes_mutated(data, rng, data) for _ in range(10)]
    assert any(each != data for each in changed)
    text = json.dumps({"a": [1, {"b": "c"}], "d": None})
    assert any(json_mutated(text, rng) != text for _ in range(10))


FAULTY = """
import sys, time
from pathlib import Path
from multiprocessing import Pipe
from scripts import fuzz_bundle
faults = {
    "escape": lambda: open("/etc/hostname").close(),
    "memory": lambda: bytearray(3 * 2**30),
    "error": lambda: {}["no"],
}
def read(sandbox, calls=[]):
    calls.append(1)
    if len(calls) > 1:
        faults[sys.argv[1]]()
    return "accepted"
fuzz_bundle.Sandbox.read = read
results, sending = Pipe(duplex=False)
fuzz_bundle.work(Path(sys.argv[2]) / "place", 1, range(1), [0, 0], sending)
print(results.recv()[2])
"""


@pytest.mark.parametrize(("fault", "outcome"), [("escape", "escape"), ("memory", "MemoryError"), ("error", "KeyError")])
def test_fault_of_a_reader_is_a_finding(tmp_path: Path, fault: str, outcome: str) -> None:
    command = [sys.executable, "-c", FAULTY, fault, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == f"finding: {outcome}\n"


HANGING = """
import os, sys, time
from pathlib import Path
from scripts import fuzz_bundle
from scripts.fuzz_bundle import Sandbox
def read(sandbox, calls=[]):
    calls.append(1)
    if len(calls) > 1:
        os.kill(os.getpid(), 9) if sys.argv[2] == "crash" else time.sleep(60)
    return "accepted"
Sandbox.read = read
fuzz_bundle.SECONDS = 0.5
if __name__ == "__main__":
    record = fuzz_bundle.fuzz(range(2), 1, 1, Path(sys.argv[1]), quiet=True)
    print(record["outcomes"], sorted(path.name for path in Path(sys.argv[1]).iterdir()))
"""


@pytest.mark.parametrize("fault", ["hang", "crash"])
def test_worker_that_hangs_or_dies_is_a_finding_and_the_run_goes_on(tmp_path: Path, fault: str) -> None:
    """The script is a file, so that the workers, which are started anew, have the faulty reader as well."""
    script = tmp_path / "faulty.py"
    script.write_text(HANGING, "utf-8")
    command = [sys.executable, str(script), str(tmp_path / "found"), fault]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240, env=environment)
    assert done.stdout == f"{{'finding: {fault}': 2}} ['1-0', '1-1']\n"
