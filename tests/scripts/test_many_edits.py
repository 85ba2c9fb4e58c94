"""The benchmark of many edits, on the tiny model with few."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mobiedit.runtime import Bundle, EditConfig, EditRequest, open_bundle
from scripts import many_edits
from scripts.many_edits import batch_against_singles, fill, main, with_and_without
from tests.scripts.test_sequential_edits import RECORDS

FORCED = EditConfig(force=True)  # the random model's canaries may change with any edit


@pytest.fixture
def bundle(fp32_bundle: Path, tmp_path: Path) -> Bundle:
    return open_bundle(shutil.copytree(fp32_bundle, tmp_path / "bundle"), verify=False)


def teach(bundle: Bundle) -> None:
    bundle.edit("The book of {} is", "Anna", "old", config=FORCED)


def test_batch_is_held_against_the_sum_of_the_singles(bundle: Bundle) -> None:
    requests = [EditRequest("The book of {} is", subject, "old") for subject in ("Anna", "Paris")]
    forwards, seconds, committed = batch_against_singles(bundle, requests)
    assert forwards["ratio"] == forwards["batch"] / forwards["alone"]
    assert seconds["ratio"] == seconds["batch"] / seconds["alone"]
    low, high = (float(bound) for bound in str(forwards["interval"]).split(" to "))
    assert low <= round(float(forwards["ratio"]), 3) <= high
    assert committed["batch"] == len(bundle.edits())  # the singles are undone


def test_bundle_has_as_many_edits_as_asked_for_when_it_is_filled(bundle: Bundle) -> None:
    teach(bundle)
    (own,) = bundle.edits()
    fill(bundle, [own], 4, seed=0)
    edits = open_bundle(bundle.path, verify=False).edits()
    assert [edit.edit_id for edit in edits] == [own.edit_id, "made0", "made1", "made2"]
    assert len({edit.subject for edit in edits}) == 4


def test_opening_and_asking_are_timed_with_and_without_edits(bundle: Bundle, fp32_bundle: Path) -> None:
    teach(bundle)
    rows = with_and_without(open_bundle(fp32_bundle, verify=False), bundle, 1, repeats=1, tokens=2)
    assert [row[""] for row in rows] == ["open and solve: seconds", "ask, 2 tokens: seconds"]
    for row in rows:
        assert row["ratio"] == row["1"] / row["none"]
        assert row["more"] == row["1"] - row["none"]


def test_script_writes_all_rows_and_the_bundle_stays(
    fp32_bundle: Path, data: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def committed(bundle: Bundle, requests: Sequence[EditRequest]) -> list[Any]:
        rows = batch_against_singles(bundle, requests)
        if not bundle.edits():
            teach(bundle)
        return rows

    monkeypatch.setattr(many_edits, "batch_against_singles", committed)
    out = tmp_path / "out.json"
    given = [fp32_bundle, "--data", data, "--json", out, "--limit", 1, "--edits", 2, "--repeats", 1, "--tokens", 2]
    run(main, given)
    assert len(json.loads(out.read_text())["rows"]) == 5
    assert not open_bundle(fp32_bundle).edits()


def test_bundle_is_refused_when_it_has_edits(bundle: Bundle, tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    data.write_text(json.dumps(RECORDS))
    teach(bundle)
    words = [bundle.path, "--data", data, "--json", tmp_path / "out.json", "--edits", 2]
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 2
    assert "has edits, and is measured without any: undo them" in done.output
