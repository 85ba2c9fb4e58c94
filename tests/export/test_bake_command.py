"""``mobiedit bake`` as a user types it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mobiedit.export.bake import BakeReport
from mobiedit.runtime.cli import main
from mobiedit.runtime.errors import ExportError

REPORT = BakeReport(2, "model.layers.1.mlp.down_proj.weight", "bfloat16", 0.002, ("a note",))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Stand in for the baking, which has tests of its own; give what it was asked for."""
    calls: list[object] = []

    def fake(bundle: object, base: str, out: Path, *, lora: bool, revision: str | None) -> BakeReport:
        calls.extend((base, out, lora, revision))
        return REPORT

    monkeypatch.setattr("mobiedit.export.bake.bake", fake)
    return calls


def bake(bundle: Path, *more: str) -> Result:
    return CliRunner().invoke(main, ["bake", str(bundle), "--base", "base/model", "--out", "place", *more])


def test_report_is_printed_when_baked(fp32_bundle: Path, asked: list[object]) -> None:
    result = bake(fp32_bundle)
    assert result.exit_code == 0, result.output
    assert asked == ["base/model", Path("place"), False, None]
    assert result.stderr == "note: a note\n"
    assert result.stdout.splitlines() == [
        "wrote place: checkpoint, 2 edits in model.layers.1.mlp.down_proj.weight, bfloat16",
        "  lost to rounding: 2.0e-03 of an edit",
        "  the bundle reads every text behind token 0, '<|endoftext|>': put it in front of yours as well",
    ]


def test_json_has_the_report_when_asked_for(fp32_bundle: Path, asked: list[object]) -> None:
    result = bake(fp32_bundle, "--lora", "--revision", "main", "--json")
    assert asked == ["base/model", Path("place"), True, "main"]
    assert json.loads(result.stdout) == {
        "out": "place",
        "adapter": True,
        "rank": 2,
        "weight": "model.layers.1.mlp.down_proj.weight",
        "dtype": "bfloat16",
        "rounding": 0.002,
        "notes": ["a note"],
        "first_token": {"id": 0, "text": "<|endoftext|>"},
    }


def test_refusal_is_one_line_when_there_are_no_edits(fp32_bundle: Path, llama: Path, tmp_path: Path) -> None:
    arguments = ["bake", str(fp32_bundle), "--base", str(llama), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert re.fullmatch(r"error: [^\n]+ has no edits in force, there is nothing to bake: [^\n]+\n", result.stderr)
    assert not list(tmp_path.iterdir())


def test_refusal_is_one_line_when_the_base_is_another(fp32_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ExportError("another")

    monkeypatch.setattr("mobiedit.export.bake.bake", refuse)
    assert bake(fp32_bundle).stderr == "error: another\n"
