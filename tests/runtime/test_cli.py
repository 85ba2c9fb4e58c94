"""The commands as a user types them."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mobiedit.runtime.cli import main

REQUEST = ["--prompt", "The mother tongue of {} is", "--subject", "Danielle Darrieux", "--target", "old"]
QUICK = ["--optimizer", "zo", "--steps", "2", "--directions", "2", "--check-every", "1"]


def run(*arguments: str | Path) -> str:
    """Run a command that must succeed and return its output."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_edit_prints_one_object_when_json_is_asked_for(bundle_path: Path) -> None:
    told = json.loads(run("edit", bundle_path, *REQUEST, *QUICK, "--force", "--json"))
    assert told["committed"] is True
    assert told["optimizer"] == "zo"
    assert set(told["success"]) == set(told["success_before"]) == {"greedy_match", "target_prob", "nll"}
    assert (told["replaces"], told["method"], told["compaction_error"]) == (None, "gated", 0.0)
    counts = {"forwards", "token_layers", "dispatches", "io_bytes"}
    assert set(told["cost"]) == counts | {"wall_s", "peak_rss_bytes"}
    assert min(told["cost"][name] for name in counts) > 0
    assert {"edit_id", "steps", "locality"} <= set(told)
    # Looks at steps 0, 1 and 2, and two steps of two directions with two forwards each.
    assert told["steps"] == 2
    assert told["cost"]["forwards"] == 3 + 2 * 2 * 2


def test_edit_shows_its_progress_without_a_terminal_when_asked(bundle_path: Path) -> None:
    for option, shown in (("--progress", True), ("--no-progress", False)):
        arguments = ["edit", str(bundle_path), *REQUEST, *QUICK, "--force", "--json", option]
        result = CliRunner().invoke(main, arguments)
        assert json.loads(result.stdout)["committed"] is True
        assert ("search:" in result.stderr) is shown


def test_edit_that_did_not_take_exits_with_1_and_says_what_failed(bundle_path: Path) -> None:
    result = CliRunner().invoke(main, ["edit", str(bundle_path), *REQUEST, *QUICK])
    assert result.exit_code == 1
    assert "not committed" in result.stdout
    assert "failed: the prompt does not lead to the target" in result.stderr
    assert "no edits" in run("list", bundle_path)


def test_edit_is_listed_and_undone_when_committed(bundle_path: Path) -> None:
    run("edit", bundle_path, *REQUEST, *QUICK, "--force")
    (listed,) = json.loads(run("list", bundle_path, "--json"))
    assert listed["target"] == "old"
    assert f"{listed['edit_id']}" in run("list", bundle_path)
    assert json.loads(run("undo", bundle_path, listed["edit_id"], "--json")) == {
        "edit_id": listed["edit_id"],
        "undone": True,
    }
    assert run("list", bundle_path) == "no edits\n"


LINES = [
    {"prompt": "The mother tongue of {} is", "subject": "Danielle Darrieux", "target": "old"},
    {"prompt": "The capital of {} is", "subject": "France", "target": "the", "keep": ["Oslo is in"]},
]


def batch_of(*lines: dict[str, object]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_batch_prints_one_object_when_json_is_asked_for(bundle_path: Path, tmp_path: Path) -> None:
    (tmp_path / "facts.jsonl").write_text(batch_of(*LINES))
    batch = ["--batch", tmp_path / "facts.jsonl", "--method", "memit"]
    told = json.loads(run("edit", bundle_path, *batch, *QUICK, "--force", "--json"))
    assert (told["committed"], told["left_out"], told["method"]) == (2, 0, "memit")
    assert [edit["target"] for edit in told["edits"]] == ["old", "the"]
    assert told["cost"]["forwards"] == sum(edit["cost"]["forwards"] for edit in told["edits"])
    assert json.loads(run("info", bundle_path, "--json"))["edits"] == 2


def test_batch_tells_a_line_for_each_fact_and_the_totals(bundle_path: Path) -> None:
    arguments = ["edit", str(bundle_path), "--batch", "-", *QUICK, "--force"]
    result = CliRunner().invoke(main, arguments, input=batch_of(*LINES))
    assert result.exit_code == 0, result.output
    listed = [line.split()[0] for line in run("list", bundle_path).splitlines()]
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines if " -> " in line] == listed
    assert any(line.startswith("2 of 2 committed as batch") for line in lines)
    assert any("forwards" in line and "token-layers" in line for line in lines)
    assert "more than slots" not in result.stdout
    replaced = CliRunner().invoke(main, arguments, input=batch_of(LINES[1]))
    assert f"  replaces {listed[1]}\n" in replaced.stdout


def test_batch_exits_with_1_when_facts_are_left_out(bundle_path: Path) -> None:
    result = CliRunner().invoke(main, ["edit", str(bundle_path), "--batch", "-", *QUICK], input=batch_of(*LINES))
    assert result.exit_code == 1
    assert "0 of 2 committed" in result.stdout
    assert "left out  The capital of France -> the" in result.stdout.replace(" is ->", " ->")
    assert "failed: the prompt does not lead to the target" in result.stderr
    assert "no edits" in run("list", bundle_path)


def test_edit_says_what_it_replaces(bundle_path: Path) -> None:
    edit_id = json.loads(run("edit", bundle_path, *REQUEST, *QUICK, "--force", "--json"))["edit_id"]
    assert f"  replaces            {edit_id}\n" in run("edit", bundle_path, *REQUEST, *QUICK, "--force")


def test_ask_prints_the_same_text_when_streamed_and_as_json(bundle_path: Path) -> None:
    told = json.loads(run("ask", bundle_path, "The capital of France is", "--max-tokens", "6", "--json"))
    assert run("ask", bundle_path, "The capital of France is", "--max-tokens", "6") == told["answer"] + "\n"


@pytest.mark.parametrize("as_json", [True, False])
def test_info_and_verify_name_what_the_bundle_is(bundle_path: Path, as_json: bool) -> None:
    flags = ["--json"] if as_json else []
    info, verified = run("info", bundle_path, *flags), run("verify", bundle_path, *flags)
    assert "fp32" in info
    assert "edit_layer" in info
    if as_json:
        assert json.loads(info)["slots"] == {"used": 0, "total": 3}
        assert set(json.loads(info)["predicted_peak_bytes"]) == {"edit", "ask"}
        assert json.loads(run("info", bundle_path, "--staging", "on", *flags))["staged_edits"] is True
        assert json.loads(verified)["ok"] is True
    else:
        assert "files and 0 edits are intact" in verified


def test_ctrl_c_commits_nothing_and_exits_with_130(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mobiedit.runtime.bundle.gauss_newton", interrupt)
    result = CliRunner().invoke(main, ["edit", str(bundle_path), *REQUEST])
    assert result.exit_code == 130
    assert "nothing was committed" in result.stderr
    assert "no edits" in run("list", bundle_path)


def test_bug_keeps_its_traceback(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("mobiedit.runtime.bundle.gauss_newton", break_down)
    result = CliRunner().invoke(main, ["edit", str(bundle_path), *REQUEST])
    assert isinstance(result.exception, ZeroDivisionError)
