"""The comparison runs every method on every record, and says which costs were measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mobiedit.runtime.costs import Cost
from mobiedit.runtime.evaluation import MeasuredRecord, Metrics
from scripts.compare_costs import Clocked, _extrapolated, main
from scripts.support.published import PublishedConfig


def edited(steps: int, stopped: bool, cost: Cost | None) -> MeasuredRecord:
    return MeasuredRecord(
        "0", "p", "s", "t", Metrics(), Metrics(), {}, {}, "published", steps=steps, stopped_early=stopped, cost=cost
    )


def test_cost_of_all_steps_is_linear_in_the_searchs_own() -> None:
    whole = PublishedConfig().whole_forwards
    assert whole == 600 * 5 * 3 + 31
    clock = Clocked(lambda task: pytest.fail("not called"), [Cost(92, 920, 2.0, 0), Cost(92, 920, 2.0, 0)])
    records = [edited(6, False, Cost(92, 1000, 3.0, 0)), edited(6, True, Cost(92, 1000, 3.0, 0))]
    cut, stopped = _extrapolated(records, clock, whole)
    assert (cut.forwards, cut.token_layers) == (whole, 1000 + 10 * (whole - 92))
    assert cut.wall_s == pytest.approx(3.0 + 2.0 * (whole - 92) / 92)
    assert stopped == Cost(92, 1000, 3.0, 0)


def test_whole_run_is_not_extrapolated() -> None:
    clock = Clocked(lambda task: pytest.fail("not called"), [Cost(9031, 600, 2.0, 0)])
    assert _extrapolated([edited(600, False, Cost(9031, 700, 3.0, 0))], clock, 9031) == []


def test_script_compares_all_methods(fp32_bundle: Path, llama: Path, data: Path, tmp_path: Path, run: Any) -> None:
    out = tmp_path / "costs.json"
    given = [fp32_bundle, "--data", data, "--model", llama, "--optimizer", "zo", "--published-steps", 2, "--limit", 2]
    result = run(main, [*given, "--json", out])
    assert "extrapolated" in result.output
    document = json.loads(out.read_text("utf-8"))
    assert list(document["records"]) == ["zo", "backprop", "published"]
    assert {len(records) for records in document["records"].values()} == {2}
    rows = {row["method"]: row for row in document["rows"]}
    assert rows["published"]["forwards"] == 2 * 15 + 2
    assert rows["published, 600 steps, extrapolated"]["forwards"] == 9031
    zo = next(ratio for ratio in document["ratios"] if ratio["method"] == "zo")
    assert zo["forwards / zo"] == zo["wall_s / zo"] == 1
