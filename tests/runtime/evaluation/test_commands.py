"""``mobiedit bench`` as a user types it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mobiedit.runtime import EditConfig
from mobiedit.runtime.cli import main
from mobiedit.runtime.configuration import Optimizer, edit_config

Raw = Callable[..., dict[str, Any]]


@pytest.fixture
def bench(
    bundle_path: Path, raw: Raw, data_path: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Return a function that runs the command on two personal records, with a search of two steps."""
    path = data_path(raw("personal"), raw("personal", id="dentist-2", target_new="Dr. No"))

    def quick(optimizer: Optimizer, given: dict[str, Any], seed: int) -> EditConfig:
        return edit_config(optimizer, {**given, "steps": 2}, seed)

    monkeypatch.setattr("mobiedit.runtime.evaluation.commands.edit_config", quick)

    def run(*more: str, data: Path = path, out: Path = tmp_path / "out.json", bundle: Path = bundle_path) -> Result:
        arguments = ["bench", str(bundle), "--data", str(data), "--json", str(out), "--fluency-tokens", "6", *more]
        return CliRunner().invoke(main, arguments)

    return run


def test_bench_writes_the_file_and_prints_a_table(bench: Callable[..., Result], tmp_path: Path) -> None:
    result = bench("--threads", "1", "--seed", "3")
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert list(document) == ["settings", "records", "summary", "further", "easyedit"]
    settings = document["settings"]
    assert (settings["format"], settings["data"], settings["seed"]) == ("personal", "data.json", 3)
    assert (settings["threads"], settings["fluency_tokens"], settings["bundle"]) == (1, 6, "bundle")
    assert (settings["limit"], settings["skip"], settings["precision"], settings["edit_layer"]) == (None, 0, "fp32", 1)
    assert {"base", "bundle_sha256", "data_sha256", "optimizer", "versions", "edit"} <= set(settings)
    assert str(tmp_path) not in json.dumps(document)
    assert "2 records, 0 refused" in result.stdout
    assert "worst decile: 1 records, target probability 0." in result.stdout
    for name, entry in document["summary"].items():
        line = next(line for line in result.stdout.splitlines() if line.startswith(f"{name} "))
        figures = [entry["pre"], entry["post"], *entry["ci95"]] if "pre" in entry else []
        assert [float(x) for x in re.findall(r"\d+\.\d{4}", line)] == pytest.approx(figures, abs=1e-4)


@pytest.mark.parametrize("option", [["--limit", "1"], ["--skip", "1"]])
def test_bench_takes_a_part_of_the_records(bench: Callable[..., Result], tmp_path: Path, option: list[str]) -> None:
    assert bench(*option).exit_code == 0
    (record,) = json.loads((tmp_path / "out.json").read_text("utf-8"))["records"]
    assert record["identifier"] == ("dentist-1" if "--limit" in option else "dentist-2")


def test_bench_goes_on_only_when_it_is_asked_to(bench: Callable[..., Result], tmp_path: Path) -> None:
    assert bench().exit_code == 0
    before = (tmp_path / "out.json").read_bytes()
    again = bench()
    assert again.exit_code == 2
    assert re.fullmatch(r"error: .*out\.json exists: add --resume to go on, or name another file\n", again.stderr)
    other = bench("--resume", "--limit", "1")
    assert other.exit_code == 2
    assert re.fullmatch(r"error: .*out\.json holds 2 records, more than the limit of 1: .*\n", other.stderr)
    assert bench("--resume").exit_code == 0
    assert (tmp_path / "out.json").read_bytes() == before


def test_bench_goes_on_to_more_records_when_the_limit_is_raised(bench: Callable[..., Result], tmp_path: Path) -> None:
    assert bench("--limit", "1").exit_code == 0
    first = json.loads((tmp_path / "out.json").read_text("utf-8"))["records"]
    assert bench("--resume").exit_code == 0
    document = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert document["records"][:1] == first
    assert [record["identifier"] for record in document["records"]] == ["dentist-1", "dentist-2"]
    assert document["settings"]["limit"] is None


def test_ctrl_c_leaves_a_whole_file(
    bench: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mobiedit.runtime.bundle.Bundle.trial", interrupt)
        assert bench().exit_code == 130
    assert json.loads((tmp_path / "out.json").read_text("utf-8"))["records"] == []
    assert bench("--resume").exit_code == 0
    assert len(json.loads((tmp_path / "out.json").read_text("utf-8"))["records"]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": Path("nowhere.json")}, "nowhere.json is not a file: give a JSON file of records"),
        ({"out": Path("nowhere/out.json")}, "folder nowhere of out.json is missing: create it"),
        ({"bundle": Path("nowhere")}, "nowhere is not a folder: give the bundle"),
    ],
)
def test_bench_is_refused_with_one_line_when_a_path_is_wrong(
    bench: Callable[..., Result], change: dict[str, Path], message: str
) -> None:
    result = bench(**change)
    assert result.exit_code == 2
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr)
    assert message in result.stderr


def test_bench_is_refused_when_the_format_is_another(bench: Callable[..., Result]) -> None:
    result = bench("--format", "counterfact")
    assert result.exit_code == 2
    assert "record 0 of data.json: 'ground_truth' is missing" in result.stderr
