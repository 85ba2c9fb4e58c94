"""Predicted and measured memory, side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobiedit.runtime.errors import ExecutionError
from scripts.memory_prediction import Comparison, compare, table


def test_processes_are_measured_when_a_bundle_is_compared(fp32_bundle: Path) -> None:
    before = sorted(fp32_bundle.parent.rglob("*"))
    comparisons = list(compare(fp32_bundle, 1))
    assert [each.work for each in comparisons] == ["edit, staging on", "edit, staging off", "ask"]
    assert all(2 * 10**7 < each.measured < 10**9 for each in comparisons)  # an interpreter with ONNX Runtime, at least
    # The tiny bundle is next to nothing beside the libraries; they may differ on another machine.
    assert all(abs(each.error) < 1 for each in comparisons)
    assert sorted(fp32_bundle.parent.rglob("*")) == before


def test_comparison_is_refused_when_a_process_fails(tmp_path: Path) -> None:
    (tmp_path / "no.bundle").mkdir()
    with pytest.raises(ExecutionError, match="info failed"):
        next(compare(tmp_path / "no.bundle", 1))


def test_table_has_a_row_a_comparison_when_it_is_written() -> None:
    lines = table([Comparison("b", "ask", 110_000_000, 100_000_000)]).splitlines()
    assert lines[2] == "| b | ask | 110 | 100 | +10% |"
