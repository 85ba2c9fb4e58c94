"""The check on the simulator, on the tiny model: what it writes, and when it fails."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from mobiedit.runtime import open_bundle
from mobiedit.runtime.bundle_layout import GRAPHS
from scripts import simulator_check
from scripts.simulator_check import failures, logit_differences, main

simulator = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="the simulator is in the x86-64 Linux wheel alone"
)
ROW = {"graph": "head", "nodes_on_cpu": 0, "cosine": 0.9999}
EDIT: dict[str, Any] = {"committed": True, "cosine_with_cpu_after": 1.0, "restored_exactly": True, "failures": []}


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@simulator
def test_record_is_written_and_the_bundle_stays_when_all_is_well(
    w8a16_bundle: Path, tmp_path: Path, run: Callable[..., Result]
) -> None:
    out, before = tmp_path / "simulator.json", files_of(w8a16_bundle)
    edit = ["--prompt", "The book of {} is", "--subject", "Paris", "--target", "the", "--steps", "1", "--force"]
    run(main, [w8a16_bundle, "--out", out, "--lines", "1", *edit])
    assert files_of(w8a16_bundle) == before
    document = json.loads(out.read_text("utf-8"))
    assert [row["graph"] for row in document["graphs"]] == list(GRAPHS)
    for row in document["graphs"]:
        assert (row["nodes_on_npu"] > 0, row["nodes_on_cpu"]) == (True, 0)
        assert row["runs"] == 3  # a text but its last token, that one, and the rows of the edit
        assert row["cosine"] >= simulator_check.MIN_COSINE
    assert document["logits"]["tokens"] == 16
    taught = document["edit"]
    assert taught["committed"]
    assert taught["answers"]["after"] == taught["answers"]["after_on_cpu"]
    assert taught["answers"]["undone"] == taught["answers"]["before"]
    assert document["failures"] == []
    page = out.with_suffix(".md").read_text("utf-8")
    assert document["command"] in page
    assert str(tmp_path) not in page


@simulator
def test_exit_code_is_1_and_the_record_is_written_when_a_cosine_misses(
    w8a16_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a limit that nothing keeps the record is written all the same, and the exit code tells."""
    monkeypatch.setattr(simulator_check, "MIN_COSINE", 1.5)
    out = tmp_path / "simulator.json"
    edit = ["--prompt", "The book of {} is", "--subject", "Paris", "--target", "the", "--steps", "1"]
    done = CliRunner().invoke(main, [str(w8a16_bundle), "--out", str(out), "--lines", "1", *edit])
    assert done.exit_code == 1, done.output
    told = json.loads(out.read_text("utf-8"))["failures"]
    assert [line.split(":")[0] for line in told[:4]] == list(GRAPHS)


@pytest.mark.parametrize(
    ("row", "edit", "told"),
    [
        ({}, {}, None),
        ({"nodes_on_cpu": 2}, {}, "head: 2 nodes are on the CPU"),
        ({"cosine": 0.99}, {}, "head: cosine 0.9900 is below 0.999"),
        ({"cosine": float("nan")}, {}, "head: cosine nan is below 0.999"),
        ({}, {"committed": False, "failures": ["a", "b"]}, "the edit was refused: a; b"),
        ({}, {"restored_exactly": False}, "undoing the edit left a trace"),
        ({}, {"cosine_with_cpu_after": 0.9}, "edited: cosine 0.9000 is below 0.999"),
    ],
)
def test_failure_is_told_when_one_thing_is_off(row: dict[str, Any], edit: dict[str, Any], told: str | None) -> None:
    assert failures([{**ROW, **row}], {**EDIT, **edit}) == ([told] if told else [])


def test_same_argmax_is_the_share_of_tokens_when_one_differs() -> None:
    wanted = np.eye(4, dtype=np.float32)
    found = wanted.copy()
    found[3] = [2, 0, 0, 1]
    told = logit_differences([wanted[:1], wanted[1:]], [found])
    assert (told["tokens"], told["same_argmax"], told["max_abs_difference"]) == (4, 0.75, 2.0)


def test_bundle_is_refused_in_one_line_when_it_is_not_for_the_npu(fp32_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "simulator.json"
    done = CliRunner().invoke(main, [str(fp32_bundle), "--out", str(out)])
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: the bundle is fp32, the NPU takes w8a16, w8a8, mixed alone")
    assert not out.exists()


def test_folder_of_the_record_is_named_when_it_is_missing(fp32_bundle: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, [str(fp32_bundle), "--out", str(tmp_path / "no" / "simulator.json")])
    assert done.exit_code == 2
    assert "is missing: create it" in done.stderr
    assert open_bundle(fp32_bundle).edits() == ()
