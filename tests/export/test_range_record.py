"""What a bundle says of its activation ranges."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mobiedit.calibration.activation_ranges import RangeMethod, TensorRange
from mobiedit.export.range_record import write_ranges
from mobiedit.runtime.errors import StorageError

PREFIX = {"b": TensorRange(-1 / 3, 0.1, 10), "a": TensorRange(0.0, 4.0, 30, 2.0)}
RANGES = {"prefix": PREFIX, "head": {"logits": TensorRange(-8.0, 2.0, 5)}}


def test_file_has_the_exact_ends_and_the_summary_the_shares_when_written(tmp_path: Path) -> None:
    stated = write_ranges(tmp_path, RANGES, RangeMethod.CLIP, 7)
    record = json.loads((tmp_path / "ranges.json").read_text())
    ends = {"prefix": {"a": [0.0, 4.0], "b": [-1 / 3, 0.1]}, "head": {"logits": [-8.0, 2.0]}}
    assert record == {"method": "clip", "samples": 7, "graphs": ends}
    assert (stated["method"], stated["samples"]) == ("clip", 7)
    assert [each["clipped"] for each in stated["graphs"].values()] == [0.05, 0.0]
    assert [each["largest_bound"] for each in stated["graphs"].values()] == [4.0, 8.0]


def test_file_is_the_same_when_tensors_come_in_another_order(tmp_path: Path) -> None:
    contents = set()
    for graphs in (RANGES, {graph: dict(reversed(of.items())) for graph, of in reversed(RANGES.items())}):
        write_ranges(tmp_path, graphs, RangeMethod.MIN_MAX, 1)
        contents.add((tmp_path / "ranges.json").read_bytes())
    assert len(contents) == 1


def test_disk_is_named_when_it_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "no")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(StorageError, match=r"ranges\.json: permission denied"):
        write_ranges(tmp_path, RANGES, RangeMethod.MIN_MAX, 1)
    assert list(tmp_path.iterdir()) == []
