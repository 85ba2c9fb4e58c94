"""The benchmark: nothing is committed, a kill costs one record at most, and a refused edit is counted as failed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobiedit.runtime import (
    Bundle,
    EditConfig,
    ExecutionConfig,
    ExecutionProvider,
    Method,
    ZerothOrderConfig,
    open_bundle,
)
from mobiedit.runtime.configuration import Optimizer
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.evaluation import BenchConfig, EvaluationRecord, ForeignSearch, Format, read_records, run_bench
from mobiedit.runtime.evaluation.bench import measure_record, npu_settings
from mobiedit.runtime.evaluation.cached_reader import CachedReader
from mobiedit.runtime.evaluation.measured import observe
from mobiedit.runtime.search import SearchResult, SearchTask

Raw = Callable[..., dict[str, Any]]
DataPath = Callable[..., Path]
QUICK = EditConfig(Optimizer.ZO, Method.ROME, zeroth_order=ZerothOrderConfig(steps=4, directions=4, check_every=2))
CONFIG = BenchConfig(QUICK, fluency_tokens=8)
SUBJECTS = ["Danielle", "Danielle Darrieux", "tongue", "mother tongue"]


def snapshot(path: Path) -> dict[str, tuple[str, int]]:
    """Return the content and the time of every file and folder."""
    return {
        str(f.relative_to(path)): (
            hashlib.sha256(f.read_bytes()).hexdigest() if f.is_file() else "",
            f.stat().st_mtime_ns,
        )
        for f in path.rglob("*")
    }


def without_machine(document: dict[str, Any]) -> Any:
    """Return a result without what depends on the machine's speed and memory."""
    copy = json.loads(json.dumps(document))
    for record in copy["records"]:
        for name in ("wall_s", "peak_rss_bytes"):
            (record["cost"] or {}).pop(name, None)
    for name in ("wall_s", "peak_rss_bytes"):
        copy["summary"].pop(name)
    return copy


@pytest.fixture
def four(raw: Raw, data_path: DataPath) -> Path:
    """A file of four records that differ."""
    return data_path(*(raw("counterfact", case_id=i, subject=subject) for i, subject in enumerate(SUBJECTS)))


@pytest.mark.parametrize("committed", [0, 1])
def test_bundle_is_as_before_when_records_were_measured(
    bundle: Bundle, four: Path, tmp_path: Path, committed: int
) -> None:
    for _ in range(committed):
        bundle.edit(
            "The capital of {} is",
            "France",
            "Rome",
            config=EditConfig(Optimizer.ZO, Method.ROME, zeroth_order=QUICK.zeroth_order, force=True),
        )
    before = snapshot(bundle.path)
    told: list[tuple[int, int]] = []
    document = run_bench(
        bundle, read_records(four), CONFIG, tmp_path / "out.json", report=lambda *numbers: told.append(numbers)
    )
    assert snapshot(bundle.path) == before
    assert told == [(i, 4) for i in range(5)]
    assert json.loads((tmp_path / "out.json").read_text("utf-8")) == json.loads(json.dumps(document))
    assert len(document["settings"]["edits"]) == committed


def test_record_holds_the_edit_and_both_moments(bundle: Bundle, record: Callable[..., EvaluationRecord]) -> None:
    fact = record("zsre")
    measured = measure_record(bundle, fact, QUICK, 8, (0, 3))
    solved, after = bundle.trial(fact.request, QUICK)
    before, now = CachedReader(bundle.reader()), CachedReader(after)
    pre, post = observe(fact, before, before, 8, (0, 3)), observe(fact, now, before, 8, (0, 3))
    assert (measured.pre, measured.post) == (pre.metrics, post.metrics)
    assert pre.metrics != post.metrics
    assert measured.top_tokens == {"pre": pre.top_tokens, "post": post.top_tokens}
    assert measured.answer == {"pre": pre.answer, "post": post.answer}
    assert measured.failures == solved.failures
    assert (measured.steps, measured.stopped_early, measured.optimizer) == (solved.search.steps, False, "zo")
    assert [list(look) for look in measured.looks] == [
        [look.forwards, look.loss, look.target_probability] for look in solved.search.looks
    ]
    assert measured.cost is not None
    assert (measured.cost.forwards, measured.cost.token_layers) == (solved.cost.forwards, solved.cost.token_layers)
    assert measured.error is None


def test_trial_is_what_edit_would_commit(bundle: Bundle) -> None:
    request = EvaluationRecord("0", Format.ZSRE, "The capital of France is", "France", "Rome").request
    solved, reader = bundle.trial(request, QUICK)
    assert bundle.edits() == ()
    tried = reader.score(request.text, "Rome")
    assert tried != bundle.score(request.text, "Rome")
    bundle.edit(
        request.prompt,
        request.subject,
        request.target,
        config=EditConfig(Optimizer.ZO, Method.ROME, zeroth_order=QUICK.zeroth_order, force=True),
    )
    assert bundle.score(request.text, "Rome") == tried
    assert (bundle.edits()[0].delta == solved.search.delta).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_new": "very " * 100}, "at most 32 can be taught"),
        ({"rephrase_prompt": "word " * 400}, "the bundle's context is 256"),
    ],
)
def test_record_counts_as_failed_when_the_edit_is_refused(
    bundle: Bundle, raw: Raw, data_path: DataPath, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    path = data_path(raw("counterfact", **changes), raw("counterfact"))
    document = run_bench(bundle, read_records(path), CONFIG, tmp_path / "out.json")
    refused, made = document["records"]
    assert message in refused["error"]
    assert refused["post"] == refused["pre"]
    assert refused["cost"] is None
    assert made["error"] is None
    assert document["further"]["refused"] == 1
    wanted = (refused["post"]["exact_match"] + made["post"]["exact_match"]) / 2
    assert document["summary"]["exact_match"]["post"] == wanted
    assert document["summary"]["forwards"] == {
        "median": made["cost"]["forwards"],
        "max": made["cost"]["forwards"],
    }


def test_skip_and_limit_choose_records_and_leave_their_figures(bundle: Bundle, four: Path, tmp_path: Path) -> None:
    data = read_records(four)
    whole = run_bench(bundle, data, CONFIG, tmp_path / "whole.json")
    part = run_bench(bundle, data, BenchConfig(QUICK, 0, 1, 2, 8), tmp_path / "part.json")
    assert [record["identifier"] for record in part["records"]] == ["1", "2"]
    assert without_machine(part)["records"] == without_machine(whole)["records"][1:3]


def test_seed_changes_the_sampled_text(bundle: Bundle, four: Path, tmp_path: Path) -> None:
    data = read_records(four)
    texts = [
        run_bench(bundle, data, BenchConfig(QUICK, seed, 0, 1, 40), tmp_path / f"{seed}.json")["summary"]["fluency"]
        for seed in (0, 1)
    ]
    assert texts[0]["pre"] != texts[1]["pre"]


KILLED = """
import os, signal, sys
from pathlib import Path
from mobiedit.runtime import EditConfig, Method, ZerothOrderConfig, open_bundle
from mobiedit.runtime.configuration import Optimizer
from mobiedit.runtime.evaluation import BenchConfig, read_records, run_bench

bundle = open_bundle(sys.argv[1], verify=False)
trial, calls = bundle.trial, []

def dying(*arguments, **options):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return trial(*arguments, **options)

bundle.trial = dying
search = ZerothOrderConfig(steps=4, directions=4, check_every=2)
config = BenchConfig(EditConfig(Optimizer.ZO, Method.ROME, zeroth_order=search), fluency_tokens=8)
run_bench(bundle, read_records(Path(sys.argv[2])), config, Path(sys.argv[3]))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_resumed_run_is_the_same_as_a_whole_one_when_it_was_killed(
    bundle_path: Path, four: Path, tmp_path: Path
) -> None:
    before = snapshot(bundle_path)
    whole = run_bench(open_bundle(bundle_path), read_records(four), CONFIG, tmp_path / "whole.json")
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(bundle_path), str(four), str(out)], check=False, timeout=120
    )
    assert done.returncode == -signal.SIGKILL
    assert len(json.loads(out.read_text("utf-8"))["records"]) == 2
    told: list[int] = []
    resumed = run_bench(
        open_bundle(bundle_path),
        read_records(four),
        CONFIG,
        out,
        resume=True,
        report=lambda done, total: told.append(done),
    )
    assert told == [2, 3, 4]
    assert without_machine(resumed) == without_machine(whole)
    assert without_machine(json.loads(out.read_text("utf-8"))) == without_machine(whole)
    assert snapshot(bundle_path) == before


def test_nothing_is_measured_again_when_all_is_done(
    bundle: Bundle, four: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_bench(bundle, read_records(four), CONFIG, tmp_path / "out.json")
    before = (tmp_path / "out.json").read_bytes()
    monkeypatch.setattr("mobiedit.runtime.evaluation.bench.measure_record", None)
    run_bench(bundle, read_records(four), CONFIG, tmp_path / "out.json", resume=True)
    assert (tmp_path / "out.json").read_bytes() == before


def test_bench_is_refused_when_the_bundle_got_another_edit(bundle: Bundle, four: Path, tmp_path: Path) -> None:
    config = BenchConfig(QUICK, limit=1, fluency_tokens=0)
    run_bench(bundle, read_records(four), config, tmp_path / "out.json")
    bundle.edit(
        "The capital of {} is",
        "France",
        "Rome",
        config=EditConfig(Optimizer.ZO, Method.ROME, zeroth_order=QUICK.zeroth_order, force=True),
    )
    with pytest.raises(RequestError, match="was measured with edits"):
        run_bench(bundle, read_records(four), config, tmp_path / "out.json", resume=True)


def test_record_is_refused_when_the_slots_cannot_hold_its_edit(bundle: Bundle, four: Path, tmp_path: Path) -> None:
    for name in ("France", "Spain", "Italy"):
        bundle.edit(
            "The capital of {} is",
            name,
            "Rome",
            config=EditConfig(Optimizer.ZO, Method.ROME, zeroth_order=QUICK.zeroth_order, force=True),
        )
    config = BenchConfig(QUICK, limit=1, fluency_tokens=0)
    document = run_bench(bundle, read_records(four), config, tmp_path / "out.json")
    assert "4 edits in 3 slots" in document["records"][0]["error"]


def test_bench_is_refused_when_all_records_are_skipped(bundle: Bundle, four: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"data\.json has 4 records, 4 are skipped: skip fewer"):
        run_bench(bundle, read_records(four), BenchConfig(QUICK, skip=4), tmp_path / "out.json")


@pytest.mark.parametrize("changes", [{"seed": -1}, {"skip": -1}, {"fluency_tokens": -1}, {"limit": 0}])
def test_configuration_is_refused_when_a_number_means_nothing(changes: dict[str, int]) -> None:
    with pytest.raises(RequestError, match=r"must be [01] or more: give"):
        BenchConfig(**changes)  # type: ignore[arg-type]


def test_foreign_search_is_named_with_its_settings(fp32_model: Bundle, four: Path, tmp_path: Path) -> None:
    def nothing(task: SearchTask) -> SearchResult:
        return SearchResult(np.zeros_like(task.value), 0, False, ())

    data, out = read_records(four), tmp_path / "out.json"
    config = replace(CONFIG, limit=1)
    document = run_bench(fp32_model, data, config, out, foreign=ForeignSearch("nothing", {"rate": 1}, nothing))
    assert document["records"][0]["optimizer"] == document["settings"]["optimizer"] == "nothing"
    assert document["settings"]["edit"]["nothing"] == {"rate": 1}
    assert document["records"][0]["pre"] == document["records"][0]["post"]
    with pytest.raises(RequestError, match=r"edit\.nothing\.rate 1, not 2"):
        run_bench(fp32_model, data, config, out, resume=True, foreign=ForeignSearch("nothing", {"rate": 2}, nothing))


def test_settings_name_the_npu_when_it_runs_the_graphs_and_nothing_new_on_the_cpu() -> None:
    npu = ExecutionConfig(provider=ExecutionProvider.QNN, soc="sm8750")
    told = npu_settings(npu)
    assert (told["execution_provider"], told["soc"]) == ("qnn", "SM8750")
    assert told["qnn"]["htp_performance_mode"] == "burst"
    assert npu_settings(ExecutionConfig(threads=2)) == {}  # a result of an earlier version can be gone on with
