"""The result file: whole after every record, gone on with, or refused with one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mobiedit.runtime.costs import Cost
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.evaluation import MeasuredRecord, Metrics
from mobiedit.runtime.evaluation.result_file import ResultFile

SETTINGS = {"bundle": "b", "seed": 0, "limit": None, "edit": {"search": {"steps": 3}}, "edits": ("a",)}


def measured(identifier: str) -> MeasuredRecord:
    return MeasuredRecord(
        identifier,
        "Annä is",
        "Annä",
        "so",
        Metrics(),
        Metrics(efficacy=True, target_probability=0.1),
        {"pre": ((" so", 0.5),), "post": ()},
        {"pre": "\ufffd", "post": "so"},
        "zo",
        ("a failure",),
        2,
        True,
        ((1, 0.5, 0.25),),
        Cost(1, 2, 0.1, 4),
    )


def test_file_is_whole_after_every_record(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = ResultFile(out, SETTINGS, resume=False)
    for count in range(3):
        document = json.loads(out.read_text("utf-8"))
        assert list(document) == ["settings", "records", "summary", "further", "easyedit"]
        assert document == json.loads(json.dumps(result.document))
        assert [record["identifier"] for record in document["records"]] == ["0", "1", "2"][:count]
        assert document["settings"] == json.loads(json.dumps(SETTINGS))
        result.append(measured(str(count)))
    assert list(tmp_path.iterdir()) == [out]


def test_file_is_the_same_when_it_is_gone_on_with(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    result = ResultFile(whole, SETTINGS, resume=False)
    for i in range(3):
        result.append(measured(str(i)))
        gone_on = ResultFile(parts, SETTINGS, resume=True)
        assert len(gone_on.records) == i
        gone_on.append(measured(str(i)))
    assert whole.read_bytes() == parts.read_bytes()


def test_file_is_refused_when_it_exists_and_resume_is_not_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    out.write_bytes(b"")
    ResultFile(out, SETTINGS, resume=False)  # an empty one holds nothing to lose
    before = out.read_bytes()
    with pytest.raises(RequestError, match="exists: add --resume to go on, or name another file"):
        ResultFile(out, SETTINGS, resume=False)
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "measured with seed 0, not 1: ask for the same again, or name another file"),
        ({"edit": {"search": {"steps": 4}}}, r"measured with edit\.search\.steps 3, not 4"),
        ({"edits": ()}, r"measured with edits \['a'\], not \[\]"),
        ({"threads": 0}, "measured with threads None, not 0"),
    ],
)
def test_file_is_refused_when_its_settings_differ(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    out = tmp_path / "out.json"
    ResultFile(out, SETTINGS, resume=False).append(measured("0"))
    before = out.read_bytes()
    with pytest.raises(RequestError, match=message):
        ResultFile(out, {**SETTINGS, **changes}, resume=True)
    assert out.read_bytes() == before


def test_file_is_refused_when_it_has_a_setting_that_is_no_more(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    ResultFile(out, {**SETTINGS, "mode": "fast"}, resume=False)
    with pytest.raises(RequestError, match="measured with mode 'fast', not None"):
        ResultFile(out, SETTINGS, resume=True)


@pytest.mark.parametrize(("was", "now"), [(2, None), (2, 3), (2, 2), (None, 2), (5, 2)])
def test_file_is_the_same_when_the_limit_is_another_one(tmp_path: Path, was: int | None, now: int | None) -> None:
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    straight = ResultFile(whole, {**SETTINGS, "limit": now}, resume=False)
    first = ResultFile(parts, {**SETTINGS, "limit": was}, resume=False)
    for i in range(2):
        straight.append(measured(str(i)))
        first.append(measured(str(i)))
    gone_on = ResultFile(parts, {**SETTINGS, "limit": now}, resume=True)
    assert len(gone_on.records) == 2
    assert whole.read_bytes() == parts.read_bytes()


def test_file_is_refused_when_the_limit_leaves_some_of_its_records_out(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = ResultFile(out, SETTINGS, resume=False)
    for i in range(3):
        result.append(measured(str(i)))
    before = out.read_bytes()
    with pytest.raises(RequestError, match="holds 3 records, more than the limit of 2: ask for as many at least, or"):
        ResultFile(out, {**SETTINGS, "limit": 2}, resume=True)
    assert out.read_bytes() == before


def test_first_setting_that_differs_is_named(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    ResultFile(out, SETTINGS, resume=False)
    with pytest.raises(RequestError, match="measured with seed"):
        ResultFile(out, {**SETTINGS, "seed": 1, "edits": ()}, resume=True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text[:-1],
        lambda text: "[]",
        lambda text: "{}",
        lambda text: "null",
        lambda text: text.replace('"identifier"', '"name"'),
        lambda text: text.replace('"efficacy": true', '"efficiency": true'),
        lambda text: text.replace('"efficacy": true', '"efficacy": "yes"'),
        lambda text: text.replace('"forwards": 1,', ""),
        lambda text: text.replace('"settings": {', '"settings": [], "more": {'),
        lambda text: text.replace('"easyedit": {}', '"easyedit": {"pre": {"rewrite_acc": []}}', 1),
    ],
)
def test_file_is_refused_when_it_is_damaged(tmp_path: Path, damage: Any) -> None:
    out = tmp_path / "out.json"
    ResultFile(out, SETTINGS, resume=False).append(measured("0"))
    damaged = damage(out.read_text("utf-8"))
    assert damaged != out.read_text("utf-8")
    out.write_text(damaged, "utf-8")
    with pytest.raises(RequestError, match="is damaged or no result of a benchmark: delete it, or name another file"):
        ResultFile(out, SETTINGS, resume=True)
    assert out.read_text("utf-8") == damaged


def test_file_is_refused_when_its_folder_is_missing_or_it_is_one(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"folder .*nowhere of out\.json is missing: create it"):
        ResultFile(tmp_path / "nowhere" / "out.json", SETTINGS, resume=False)
    with pytest.raises(RequestError, match="is a folder: name a file in it"):
        ResultFile(tmp_path, SETTINGS, resume=True)
