"""The benchmark of many edits, on the tiny model with few."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from click.testing import CliRunner

from mobiedit.runtime import open_bundle
from scripts.many_edits import main
from tests.scripts.test_sequential_edits import RECORDS


def test_costs_are_compared_and_the_bundle_stays(fp32_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(fp32_bundle, tmp_path / "bundle"))
    data, out = tmp_path / "data.json", tmp_path / "out.json"
    # A subject at the end, whose place the random model reads its answer from.
    records = [{**r, "prompt": f"The book of {r['subject']}", "target_new": "old"} for r in RECORDS]
    data.write_text(json.dumps(records))
    words = [str(bundle), "--data", str(data), "--json", str(out), "--limit", "1", "--edits", "2", "--repeats", "1"]
    done = CliRunner().invoke(main, [*words, "--tokens", "2"])
    if "none of the edits was committed" in done.output:  # the random model's canaries may change
        assert done.exit_code == 2
        return
    assert done.exit_code == 0, done.output
    rows = json.loads(out.read_text())["rows"]
    assert [row[""].split(",")[0] for row in rows] == [
        "forwards",
        "seconds",
        "committed",
        "open and solve: seconds",
        "ask",
    ]
    assert not open_bundle(bundle).edits()
