"""The runner on aarch64 Linux under emulation: installed from wheels as on a device, and compared with this host.

Usage: python -m scripts.aarch64_check DIR --out docs/aarch64.json

A Debian root for arm64 is made in DIR once (as root: debootstrap, qemu-user-static), and the wheels for it are fetched
once. Each run exports a toy model, looks at the root as ``mobiedit-device doctor`` does, installs the runner as ``push
--runner`` does, edits and asks there and here, and compares. Exit code 1: a difference is above its tolerance.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from mobiedit.device.doctor import judge, report
from mobiedit.device.facts import read_facts
from mobiedit.device.local import LocalTransport
from mobiedit.device.qnn_wheel import inspect
from mobiedit.device.requirements import Platform
from mobiedit.device.runner import push_runner
from mobiedit.device.transport import Transport
from mobiedit.device.wheels import Wheels, fetch_wheels, read_wheels
from mobiedit.export.configuration import ExportConfig, Precision
from mobiedit.export.npu_check import cosine
from mobiedit.export.pipeline import export_bundle
from mobiedit.export.progress import Stages
from mobiedit.runtime.bundle_layout import EDITS
from mobiedit.runtime.cli_support import CONTEXT_SETTINGS, ErrorCommand
from mobiedit.runtime.errors import MobiEditError, RequestError
from mobiedit.runtime.files import require_place, write_atomic
from mobiedit.runtime.journal_records import EditRecord
from mobiedit.runtime.journal_state import read_journal
from mobiedit.runtime.manifest import read_manifest
from scripts.make_checkpoint import SHAPES, write_checkpoint
from scripts.support.emulated import EmulatedTransport, build_root
from scripts.support.tables import Cell, markdown_table

_PROMPT, _SUBJECT, _TARGET = "The capital of {} is", "France", " e"
_TOKENS = 4
_FEW_STEPS = 4
_SECONDS = 3600.0

# One forward: both hosts round FP32 sums in another order; 8-bit weights turn some of that into whole steps.
_MIN_FORWARD_COSINE = {Precision.FP32: 0.99999, Precision.W8A16: 0.999}
# A search repeats forwards and decides by their results: after a few steps small differences have grown, after all of
# them the two may have gone different ways to as good an end.
_MIN_DELTA_COSINE = 0.98
_MAX_PROBABILITY_RATIO = 1.5


@click.command(cls=ErrorCommand, context_settings=CONTEXT_SETTINGS)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="JSON; .md beside it.")
@click.option("--wheels", "given", type=click.Path(path_type=Path), help="A folder of wheels that were fetched before.")
def main(folder: Path, out: Path, given: Path | None) -> None:
    """Run the runner in an aarch64 root in FOLDER, which is made when it is missing."""
    require_place(out)
    folder.mkdir(parents=True, exist_ok=True)
    if not (root := folder / "root").is_dir():
        build_root(root)
    device = EmulatedTransport(root)
    # Below /tmp, which the device tool allows; the emulated programs see the host's.
    with tempfile.TemporaryDirectory(prefix="mobiedit-aarch64-", dir="/tmp") as work:
        document = check(device, Path(work), lambda target: _wheels(folder, target, given))
    write_atomic(out, json.dumps(document, indent=1, allow_nan=False).encode(), mode=None)
    page = _page(document)
    write_atomic(out.with_suffix(".md"), page.encode(), mode=None)
    click.echo(page)
    sys.exit(1 if document["failures"] else 0)


def check(device: Transport, work: Path, wheels: Callable[[Platform], Wheels]) -> dict[str, Any]:
    """Look at the device, install the runner, run it there and here on both precisions, and compare."""
    facts = read_facts(device, str(work / "device"))
    verdict = judge(facts)
    if facts.libc_version is None or facts.python is None:
        raise RequestError("the root has no glibc or no Python: remove it, and it is made again")
    found = wheels(Platform(facts.architecture, facts.libc_version, facts.python.version[:2]))
    start = time.perf_counter()
    runner = push_runner(device, str(work / "device"), found)
    installing = time.perf_counter() - start
    site = next(Path(runner.python).parent.parent.glob("lib/python3*/site-packages"))
    qnn = inspect(site)
    write_checkpoint(SHAPES["tiny"], work / "tiny", 0)
    rows: list[dict[str, Cell]] = []
    for precision in (Precision.FP32, Precision.W8A16):
        rows.append(compare(device, runner.python, work, precision))
    failures = [f"onnxruntime-qnn: {failure}" for failure in qnn.failures]
    failures += [f"{row['precision']}: {text}" for row in rows for text in _failures(row)]
    doctor = report(facts, verdict)
    del doctor["facts"]["python"]["path"]  # a folder of this machine
    return {
        "doctor": doctor,
        "runner": {"versions": runner.versions, "wheels": len(found.files), "install_seconds": round(installing, 1)},
        "wheel_bytes": sum(wheel.size for wheel in found.files),
        "qnn": {
            "version": qnn.version,
            "platform": qnn.platform,
            "libraries": qnn.libraries,
            "skeletons": qnn.skeletons,
        },
        "host": platform.machine(),
        "comparison": rows,
        "failures": failures,
    }


def compare(device: Transport, python: str, work: Path, precision: Precision) -> dict[str, Cell]:
    """Return what an edit and answers are on the device and here, in one row."""
    bundle = work / f"{precision.value}.bundle"
    config = ExportConfig(str(work / "tiny"), bundle, layer=1, precision=precision, slots=3, lens_rows=24)
    export_bundle(config, Stages(quiet=True))
    here, there = bundle, work / f"{precision.value}.device.bundle"
    shutil.copytree(bundle, there)
    row: dict[str, Cell] = {"precision": precision.value}
    sides = {"host": (LocalTransport(), sys.executable, here), "device": (device, python, there)}
    few = {}
    for side, (transport, interpreter, path) in sides.items():
        start = time.perf_counter()
        row[f"answer_before_on_{side}"] = _ask(transport, interpreter, path)
        _run(transport, interpreter, ["edit", str(path), *_edit_words(), "--steps", str(_FEW_STEPS)])
        few[side] = _edit_of(path)
        _run(transport, interpreter, ["undo", str(path), "--json"])
        edit = _run(transport, interpreter, ["edit", str(path), *_edit_words()])
        row[f"forwards_on_{side}"] = edit["cost"]["forwards"]
        row[f"learned_on_{side}"] = edit["success"]["greedy_match"]
        row[f"target_probability_on_{side}"] = edit["success"]["target_prob"]
        row[f"answer_after_on_{side}"] = _ask(transport, interpreter, path)
        row[f"seconds_on_{side}"] = round(time.perf_counter() - start, 1)
    row["answer_here_with_the_edit_of_device"] = _ask(LocalTransport(), sys.executable, there)
    for name in ("key", "value", "direction", "delta"):
        new, old = getattr(few["device"], name), getattr(few["host"], name)
        row[f"{name}_cosine"] = cosine(new, old)
        row[f"{name}_largest_difference"] = float(np.abs(new - old).max())
    return row


def _failures(row: dict[str, Cell]) -> list[str]:
    """Return what differs by more than its tolerance."""
    found = []
    if row["answer_before_on_host"] != row["answer_before_on_device"]:
        found.append("the answers before the edit differ")
    if row["answer_after_on_device"] != row["answer_here_with_the_edit_of_device"]:
        found.append("the edit that was made there gives another answer here")
    for side in ("host", "device"):
        if not row[f"learned_on_{side}"]:
            found.append(f"the edit did not take on the {side}")
    forward = _MIN_FORWARD_COSINE[Precision(str(row["precision"]))]
    limits = {"key": forward, "value": forward, "direction": forward, "delta": _MIN_DELTA_COSINE}
    for name, limit in limits.items():
        if not float(str(row[f"{name}_cosine"])) >= limit:
            found.append(f"{name}: cosine {row[f'{name}_cosine']:.6f} is below {limit}")
    low, high = sorted(float(str(row[f"target_probability_on_{side}"])) for side in ("host", "device"))
    if not high <= _MAX_PROBABILITY_RATIO * low:
        found.append(f"the target's probabilities are {low:.4f} and {high:.4f}")
    return found


def _ask(transport: Transport, python: str, bundle: Path) -> str:
    """Return an answer in ASCII: a random model's has all kinds of characters."""
    prompt = _PROMPT.replace("{}", _SUBJECT)
    words = ["ask", str(bundle), prompt, "--max-tokens", str(_TOKENS), "--json"]
    return ascii(_run(transport, python, words)["answer"])


def _edit_words() -> list[str]:
    return ["--prompt", _PROMPT, "--subject", _SUBJECT, "--target", _TARGET, "--force", "--json"]


def _run(transport: Transport, python: str, words: Sequence[str]) -> dict[str, Any]:
    done = transport.run([python, "-m", "mobiedit.runtime.cli", *words], timeout=_SECONDS)
    if done.code:
        said = done.err.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise MobiEditError(f"the runner ended with {done.code} ({' '.join(said)}): run it by hand to see why")
    answer = json.loads(done.out)
    assert isinstance(answer, dict)
    return answer


def _edit_of(bundle: Path) -> EditRecord:
    (edit,) = read_journal(bundle / EDITS / "journal", read_manifest(bundle).edit_base).edits
    return edit


def _wheels(folder: Path, target: Platform, given: Path | None) -> Wheels:
    place = given or folder / "wheels"
    return read_wheels(place) if place.exists() else fetch_wheels(place, target, qnn=True)


def _page(document: dict[str, Any]) -> str:
    """Return the record in Markdown."""
    facts, runner, qnn = document["doctor"]["facts"], document["runner"], document["qnn"]
    versions = {name: runner["versions"][name] for name in ("python", "numpy", "onnxruntime", "tokenizers")}
    names = list(document["comparison"][0])
    table = [
        {"": name.replace("_", " "), **{str(row["precision"]): row[name] for row in document["comparison"]}}
        for name in names[1:]
    ]
    verdict = "; ".join(document["failures"]) or "all is within its tolerance"
    return f"""# The runner on aarch64

    make test-aarch64

A Debian arm64 root, its programs run one by one by QEMU's user-mode emulation on {document["host"]} (no kernel or board
of that architecture: speed and energy say nothing here). The runner was installed by `push --runner`'s functions from
{runner["wheels"]} wheels ({document["wheel_bytes"] / 1e6:.0f} MB) in {runner["install_seconds"]:.0f} s, with no network. Result: {verdict}.

- What doctor read: {facts["architecture"]}, {facts["libc"]} {".".join(map(str, facts["libc_version"]))}, Python {".".join(map(str, facts["python"]["version"]))}. What it said: {document["doctor"]["verdict"]["summary"]}
- The runner there: {", ".join(f"{name} {version}" for name, version in versions.items())}.
- The wheel of onnxruntime-qnn {qnn["version"]} ({qnn["platform"]}), unpacked there: provider, HTP backend, compiler and stubs are aarch64
  libraries with their recorded hashes, skeletons are Hexagon's for {", ".join(f"v{version}" for version in qnn["skeletons"])}. Nothing of it was run.

## One edit and its answers, there and here

"{_PROMPT}", subject "{_SUBJECT}", target "{_TARGET}", on a random toy model (`scripts/make_checkpoint.py tiny`), committed with
`--force`: nothing of such a model keeps still. The cosines are those of an edit of {_FEW_STEPS} steps, the other rows of one to its end.
Tolerances: the same answer before; the target learned on both, its probabilities within a factor of {_MAX_PROBABILITY_RATIO}; the edit that was made there gives
the same answer here; cosine of key, value and direction (one forward) {_MIN_FORWARD_COSINE[Precision.FP32]} for `fp32` and {_MIN_FORWARD_COSINE[Precision.W8A16]} for `w8a16`, of delta {_MIN_DELTA_COSINE}.

{markdown_table(table)}
"""  # noqa: E501 - a table's text


if __name__ == "__main__":
    main()
