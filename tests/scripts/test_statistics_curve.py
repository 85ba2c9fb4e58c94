"""The curve of key statistics measures each form of each multiplier on every record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mobiedit.runtime.editor import Workbench
from scripts import statistics_curve
from scripts.statistics_curve import main


def test_script_measures_every_form_of_every_multiplier(
    fp32_bundle: Path, llama: Path, data: Path, tmp_path: Path, run: Any
) -> None:
    (tmp_path / "more.txt").write_text("One more line of text.\n", "utf-8")
    given = [fp32_bundle, "--data", data, "--model", llama, "--limit", 2, "--text", tmp_path / "more.txt"]
    result = run(main, [*given, "--multipliers", "0.5,1000", "--shares", "0.25", "--out", tmp_path / "curve"])
    document = json.loads((tmp_path / "curve" / "statistics_curve.json").read_text("utf-8"))
    page = (tmp_path / "curve" / "statistics_curve.md").read_text("utf-8")
    rows = document["rows"]
    forms = ["dense", "127 directions", "32 directions"]
    assert [row["form"] for row in rows] == ["before the edit", *forms, *forms]
    assert [row.get("multiplier") for row in rows] == [None, *[0.5] * 3, *[1000] * 3]
    assert {row["keys"] for row in rows[1:4]} == {64}
    assert "2 records." in page
    assert str(tmp_path) not in page
    # The text is too short for the larger multiplier, and the script says so.
    seen = rows[4]["keys"]
    assert f"multiplier 1000: the text has {seen} of 128000 keys" in result.stderr
    assert [row["KB"] for row in rows[1:3]] == [128 * 128 * 4 / 1e3, pytest.approx(33.5, rel=0.05)]
    assert {len(records) for records in document["records"]} == {2}
    # Rounding of directions changes no answer of the same delta.
    assert document["records"][1] == document["records"][2]


@pytest.mark.parametrize("search", [(), ("--search",)])
def test_records_are_searched_anew_with_each_of_the_statistics_when_asked(
    search: tuple[str, ...],
    fp32_bundle: Path,
    llama: Path,
    data: Path,
    tmp_path: Path,
    run: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = []
    solve = statistics_curve.solve_edit

    def solve_and_note(bench: Workbench, *given: Any) -> Any:
        used.append(bench.inverse_covariance)
        return solve(bench, *given)

    monkeypatch.setattr(statistics_curve, "solve_edit", solve_and_note)
    given = [fp32_bundle, "--data", data, "--model", llama, "--limit", 1, "--out", tmp_path / "curve"]
    run(main, [*given, "--multipliers", "0.5", "--shares", "0.25", *search])
    kinds = [type(each).__name__ for each in used]
    assert kinds == (["KeyStatistics", "ndarray", "KeyStatistics", "KeyStatistics"] if search else ["KeyStatistics"])


@pytest.mark.parametrize("multipliers", ["", "1,x", "0", "-1,2"])
def test_multipliers_are_refused_when_they_are_none(
    multipliers: str, fp32_bundle: Path, llama: Path, data: Path, tmp_path: Path
) -> None:
    given = [fp32_bundle, "--data", data, "--model", llama, "--multipliers", multipliers, "--out", tmp_path / "curve"]
    result = CliRunner().invoke(main, [str(each) for each in given])
    assert result.exit_code == 2
    assert "is no list of numbers above 0" in result.stderr
    assert not (tmp_path / "curve").exists()
