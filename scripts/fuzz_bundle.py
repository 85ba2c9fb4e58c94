"""Mutated manifests and journals, read as a user's bundle would be: each is accepted, or refused with one line.

Usage: python -m scripts.fuzz_bundle --cases 100000 --seed 1 --out docs/fuzz.json

Anything else is a finding and is kept as a bundle below --findings: another exception, a process that dies, more than
5 s, more than 1 GiB of memory, or a file opened, listed or changed outside the bundle's folder. A case is made of the
seed and its number alone, so it can be made again: --first N --cases 1.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click

from mobiedit.runtime.cli_support import CONTEXT_SETTINGS, ErrorCommand
from mobiedit.runtime.files import require_place, write_atomic
from scripts.support.command_line import arguments_of
from scripts.support.fuzz_sandbox import Outside, Sandbox, limit_memory

SECONDS = 5.0
MEMORY = 2**30


@dataclass(frozen=True)
class Finding:
    """A case that was neither accepted nor refused."""

    number: int
    mutations: tuple[str, ...]
    outcome: str
    detail: str


def work(place: Path, seed: int, cases: range, begun: Any, results: Connection) -> None:  # noqa: ANN401 - a Value
    """Run cases, and send of each its number, its mutations, its outcome and the details of a finding.

    Parameters
    ----------
    begun
        Shared: the number of the case that runs, and when it was begun (``time.monotonic``).
    """
    sandbox, outside = Sandbox(place), Outside(place / "case" / "bundle")
    if (outcome := sandbox.read()) != "accepted":
        raise AssertionError(f"the bundle that cases are made of: {outcome}")
    limit_memory(MEMORY)
    for number in cases:
        case = sandbox.make(number, seed)
        begun[:] = (number, time.monotonic())
        outside.found.clear()
        outside.active = True
        detail = ""
        try:
            outcome = sandbox.read()
        except BaseException as error:  # whatever it is, it is a finding
            outside.active = False  # the traceback's lines are read from their files
            outcome, detail = f"finding: {type(error).__name__}", traceback.format_exc()
        outside.active = False
        if outside.found:
            outcome, detail = "finding: escape", "; ".join(outside.found[:5])
        results.send((number, case.mutations, outcome, detail))
        if case.placed:
            sandbox.restore(case.placed)
    results.send(None)


class Worker:
    """A process that runs a share of the cases, and is replaced when it hangs or dies."""

    def __init__(self, place: Path, seed: int, cases: range) -> None:
        self._place, self._seed, self._cases = place, seed, cases
        self._lives = 0
        self.done = not cases
        if cases:
            self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._begun = context.Array("d", [-1.0, 0.0])
        self._results, sending = context.Pipe(duplex=False)
        self._lives += 1
        place = self._place / str(self._lives)
        arguments = (place, self._seed, self._cases, self._begun, sending)
        self._process = context.Process(target=work, args=arguments, daemon=True)
        self._process.start()
        sending.close()

    def outcomes(self) -> list[Finding]:
        """Return what cases came to since the last time."""
        found, dead = [], False
        try:
            while self._results.poll(0.05):
                if (told := self._results.recv()) is None:
                    self.done = True
                    self._process.join()
                    return found
                found.append(Finding(*told))
                self._cases = range(told[0] + 1, self._cases.stop)
        except EOFError:
            dead = True
            self._process.join()
        number, since = self._begun[:]
        hangs = not dead and number in self._cases and time.monotonic() - since > SECONDS
        if dead and number not in self._cases:
            raise RuntimeError(f"a worker died with exit code {self._process.exitcode} outside of any case")
        if dead or hangs:
            self._process.kill()
            self._process.join()
            code = self._process.exitcode
            what = f"more than {SECONDS} s" if hangs else f"the process died with exit code {code}"
            found.append(Finding(int(number), (), "finding: hang" if hangs else "finding: crash", what))
            self._cases = range(int(number) + 1, self._cases.stop)
            self.done = not self._cases
            if self._cases:
                self._start()
        return found


def fuzz(cases: range, seed: int, workers: int, findings: Path, quiet: bool = False) -> dict[str, Any]:
    """Run cases in worker processes and return the record of the run; findings are kept in a folder."""
    outcomes: Counter[str] = Counter()
    mutations: Counter[str] = Counter()
    kept: list[dict[str, Any]] = []
    start = shown = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        edges = [cases.start + len(cases) * index // workers for index in range(workers + 1)]
        pool = [Worker(Path(place) / str(index), seed, range(*edges[index : index + 2])) for index in range(workers)]
        while not all(worker.done for worker in pool):
            for worker in [worker for worker in pool if not worker.done]:
                for each in worker.outcomes():
                    outcomes[each.outcome] += 1
                    mutations.update(each.mutations)
                    if each.outcome.startswith("finding"):
                        kept.append({"case": each.number, "outcome": each.outcome, "detail": each.detail})
                        _keep(findings / f"{seed}-{each.number}", each, seed)
            if not quiet and time.monotonic() - shown > 10:
                shown, done = time.monotonic(), sum(outcomes.values())
                click.echo(f"{done} cases, {done / (shown - start):.0f} a second, {len(kept)} findings", err=True)
    seconds = time.monotonic() - start
    return {
        "seed": seed,
        "first": cases.start,
        "cases": sum(outcomes.values()),
        "outcomes": dict(outcomes.most_common()),
        "mutations": dict(mutations.most_common()),
        "findings": kept,
        "seconds": round(seconds, 1),
        "cases_per_second": round(sum(outcomes.values()) / seconds, 1),
        "workers": workers,
        "limits": {"seconds": SECONDS, "bytes": MEMORY},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("mobiedit", "numpy", "safetensors")},
        },
    }


def _keep(folder: Path, finding: Finding, seed: int) -> None:
    """Keep the bundle of a finding, made once more, and what was seen."""
    with tempfile.TemporaryDirectory() as place:
        sandbox = Sandbox(Path(place))
        sandbox.make(finding.number, seed)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path in sandbox.folder.rglob("*"):
            copy = folder / "bundle" / path.relative_to(sandbox.folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.is_symlink():
                copy.symlink_to(path.readlink())
            elif path.is_file():
                shutil.copy(path, copy)
    (folder / "finding.txt").write_text(f"{finding.outcome}\n{finding.detail}\n", encoding="utf-8")


@click.command(cls=ErrorCommand, context_settings=CONTEXT_SETTINGS)
@click.option("--cases", type=click.IntRange(1), default=1000, help="How many.")
@click.option("--first", type=click.IntRange(0), default=0, help="Number of the first one.")
@click.option("--seed", type=int, default=1, help="Seed of all cases.")
@click.option("--workers", type=click.IntRange(1), default=2, help="Processes.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the record here.")
@click.option("--findings", type=click.Path(path_type=Path), default=Path("fuzz-findings"), help="Keep findings here.")
@click.pass_context
def main(
    context: click.Context, cases: int, first: int, seed: int, workers: int, out: Path | None, findings: Path
) -> None:
    """Read mutated bundles; exit code 1 if one was neither accepted nor refused."""
    if out:
        require_place(out)
    record = {"command": f"python -m scripts.fuzz_bundle {arguments_of(context)}"}
    record |= fuzz(range(first, first + cases), seed, workers, findings)
    if out:
        write_atomic(out, (json.dumps(record, indent=1) + "\n").encode(), mode=None)
    click.echo(json.dumps({name: record[name] for name in ("cases", "outcomes", "seconds", "cases_per_second")}))
    sys.exit(1 if record["findings"] else 0)


if __name__ == "__main__":
    main()
