"""Where a script shall write is known to be there before it works for minutes."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from scripts import (
    aarch64_check,
    compare_costs,
    fuzz_bundle,
    many_edits,
    sequential_edits,
    simulator_check,
    suffix_speed,
)
from scripts.experiments import memit_layers

RECORDS = ("--data", "data.json", "--json")
SCRIPTS = {
    "aarch64_check": (aarch64_check.main, ("root", "--out")),
    "compare_costs": (compare_costs.main, ("bundle", *RECORDS)),
    "fuzz_bundle": (fuzz_bundle.main, ("--cases", "1", "--out")),
    "many_edits": (many_edits.main, ("bundle", *RECORDS)),
    "memit_layers": (memit_layers.main, ("bundle", *RECORDS)),
    "sequential_edits": (sequential_edits.main, ("bundle", *RECORDS)),
    "simulator_check": (simulator_check.main, ("bundle", "--out")),
    "suffix_speed": (suffix_speed.main, ("bundle", "--json")),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_file_is_refused_at_once_when_its_folder_is_missing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command: click.Command
    command, words = SCRIPTS[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "data.json").write_text("[]")
    done = CliRunner().invoke(command, [*words, "nowhere/out.json"])
    assert done.exit_code == 2, done.output
    assert "folder nowhere of out.json is missing: create it, or name another file" in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "data.json"]
