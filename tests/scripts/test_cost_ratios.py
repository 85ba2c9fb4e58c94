"""Ratios of costs over several runs of the comparison."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mobiedit.runtime.costs import Cost
from mobiedit.runtime.evaluation import MeasuredRecord, Metrics
from scripts.cost_ratios import cost_ratios, main


def edited(identifier: str, forwards: int, seconds: float, *, exact: bool = True) -> MeasuredRecord:
    post, cost = Metrics(exact_match=exact), Cost(forwards, 10 * forwards, seconds, 0)
    return MeasuredRecord(identifier, "p", "s", "t", Metrics(), post, {}, {}, "gn", cost=cost)


MEASURED = {
    "gn": [edited("0", 10, 1.0), edited("1", 10, 4.0), edited("2", 20, 25.0)],
    "backprop": [edited("0", 20, 2.0), edited("1", 10, 8.0), edited("2", 20, 5.0, exact=False)],
}


def written(path: Path, measured: dict[str, Sequence[MeasuredRecord]]) -> Path:
    path.write_text(json.dumps({"records": {n: [r.to_dict() for r in each] for n, each in measured.items()}}))
    return path


def invoke(*words: Any) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_ratios_are_of_medians_records_and_sums() -> None:
    rows = {row["cost"]: row for row in cost_ratios(MEASURED, "gn")}
    seconds = rows["wall s"]
    assert (seconds["method"], seconds["records"], seconds["both solve"]) == ("backprop", 3, 2)
    assert seconds["of the medians"] == 5 / 4
    assert seconds["geometric mean"] == pytest.approx((2 * 2 * 0.2) ** (1 / 3))
    assert seconds["all together"] == 15 / 30
    assert seconds["these together"] == 10 / 5
    assert rows["forwards"]["all together"] == rows["token layers"]["all together"] == 50 / 40


def test_refused_edits_are_left_out() -> None:
    refused = MeasuredRecord("3", "p", "s", "t", Metrics(), Metrics(), {}, {}, "gn", error="no room")
    with_refused = {name: [*records, refused] for name, records in MEASURED.items()}
    assert cost_ratios(with_refused, "gn") == cost_ratios(MEASURED, "gn")


def test_files_are_taken_together(tmp_path: Path) -> None:
    parts = [{name: [records[i]] for name, records in MEASURED.items()} for i in range(3)]
    files = [written(tmp_path / f"{i}.json", part) for i, part in enumerate(parts)]
    whole = invoke(written(tmp_path / "whole.json", MEASURED))
    assert whole.exit_code == 0, whole.output
    assert "| backprop | wall s | 3 | 1.25 |" in whole.output
    assert invoke(*files).output == whole.output


def test_files_are_refused_when_they_are_none_or_share_records(tmp_path: Path) -> None:
    good, bad = written(tmp_path / "good.json", MEASURED), tmp_path / "bad.json"
    bad.write_text('{"records": []}')
    for words, told in (
        ((good, good), "the files share records"),
        ((good, "--base", "zo"), "no method is called zo: give --base gn or backprop"),
        ((bad,), "is damaged, or no file of compare_costs"),
        ((tmp_path / "none.json",), "is missing"),
    ):
        done = invoke(*words)
        assert done.exit_code == 2
        assert told in done.output
