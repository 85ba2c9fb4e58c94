"""Every experiment runs from end to end on the tiny model and writes its table, its figures and its plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from mobiedit.runtime import EditConfig, PrefixCache, configuration, open_bundle
from mobiedit.runtime.errors import RequestError
from scripts.experiments import (
    ablation,
    estimator_validation,
    lens_sources,
    quantisation_robustness,
    sensitivity,
    staleness,
)
from scripts.support.fidelity import Fidelity, WatchedProblem


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the searches short."""
    config = configuration.ZerothOrderConfig(steps=2, directions=2, check_every=1)
    monkeypatch.setattr(configuration.EditConfig, "__init__", _with(configuration.EditConfig.__init__, config))


def _with(init: Any, config: Any) -> Any:
    def changed(self: Any, *arguments: Any, **given: Any) -> None:
        init(self, *arguments, **{"zeroth_order": config, **given})

    return changed


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the rows of an experiment, all of its files being there."""
    document = json.loads((folder / f"{name}.json").read_text("utf-8"))
    page = (folder / f"{name}.md").read_text("utf-8")
    assert document["command"] in page
    assert str(folder) not in page
    assert page.count("\n| ") == len(document["rows"]) + 2
    assert ElementTree.parse(folder / f"{name}.svg").getroot().tag.endswith("svg")
    return document["rows"]


@pytest.mark.usefixtures("quick")
def test_sensitivity(fp32_bundle: Path, data: Path, tmp_path: Path, run: Any) -> None:
    run(sensitivity.main, [fp32_bundle, "--data", data, "--limit", 1, "--steps", 1, "--out", tmp_path / "new" / "out"])
    rows = read(tmp_path / "new" / "out", "sensitivity")
    assert len(rows) == sum(map(len, sensitivity.GRID.values()))
    assert [row["forwards"] for row in rows if row["setting"] == "directions"] == [4, 6, 10, 18, 22]


@pytest.mark.usefixtures("quick")
def test_ablation(fp32_bundle: Path, data: Path, tmp_path: Path, run: Any) -> None:
    run(ablation.main, [fp32_bundle, "--data", data, "--limit", 2, "--out", tmp_path])
    rows = read(tmp_path, "ablation")
    assert len(rows) == 6
    by_cache = {row["prefix_cache"]: row for row in rows if not row["early_stopping"]}
    assert by_cache["exact"]["forwards"] == by_cache["off"]["forwards"]
    assert by_cache["exact"]["largest_error"] < 1e-4
    assert by_cache["exact"]["token_layers"] < by_cache["stale"]["token_layers"] < by_cache["off"]["token_layers"]


@pytest.mark.usefixtures("quick")
def test_staleness(fp32_bundle: Path, data: Path, tmp_path: Path, run: Any) -> None:
    given = [fp32_bundle, "--data", data, "--limit", 1, "--tokens", 0, "--tokens", 50, "--prefix-tokens", 60]
    run(staleness.main, [*given, "--out", tmp_path])
    rows = {(row["prefix_tokens"], row["tokens_kept"]): row for row in read(tmp_path, "staleness")}
    assert [*rows] == [(prefix, kept) for prefix in ("own", "60") for kept in ("exact", "0", "50")]
    for prefix in ("own", "60"):
        exact, none, fifty = (rows[prefix, kept] for kept in ("exact", "0", "50"))
        assert max(exact["largest_error"], none["largest_error"]) < 1e-4  # no token is stale: FP32 rounding alone
        assert fifty["token_layers"] < none["token_layers"]
    # Behind sixty tokens the subject is out of the cache's reach; in the bare row it never is.
    assert rows["own", "50"]["mean_error"] > rows["60", "50"]["mean_error"] > 1e-3


def test_long_prefixes_leave_the_first_prompt_bare(fp32_bundle: Path) -> None:
    tokenizer = open_bundle(fp32_bundle).tokenizer
    bare, *others = staleness.long_prefixes(tokenizer, 20, 4)
    assert bare == "{}"
    assert len(set(others)) == 3
    for prefix in others:
        assert prefix.count("{}") == 1
        assert len(tokenizer.encode(prefix.removesuffix(" {}")).ids) == pytest.approx(20, abs=2)  # a cut word's ends


def test_long_prefixes_are_refused_when_the_text_is_too_short(fp32_bundle: Path) -> None:
    tokenizer = open_bundle(fp32_bundle).tokenizer
    with pytest.raises(RequestError, match=r"ask for \d+ at most") as refused:
        staleness.long_prefixes(tokenizer, 10**6, 4)
    most = int(str(refused.value).split()[-3])
    assert len(staleness.long_prefixes(tokenizer, most, 4)) == 4
    with pytest.raises(RequestError):
        staleness.long_prefixes(tokenizer, most + 1, 4)


def test_estimator_validation(fp32_bundle: Path, llama: Path, data: Path, tmp_path: Path, run: Any) -> None:
    given = [fp32_bundle, "--data", data, "--limit", 1, "--model", llama, "--draws", 2, "--mu", 0.01]
    run(estimator_validation.main, [*given, "--out", tmp_path])
    table = read(tmp_path, "estimator_validation")
    rows = [row for row in table if row["estimator"] == "zo"]
    assert [row["directions"] for row in rows] == [*estimator_validation.COUNTS] * 2
    cosines = [row["cosine"] for row in rows if row["delta"] == "zero"]
    assert cosines[0] < cosines[3] < cosines[-1]
    assert cosines[-1] > 0.99  # 64 orthonormal directions span the tiny model's 64 dimensions
    assert rows[6]["square_error"] < 0.02
    assert rows[6]["variance"] < 0.02
    for row in rows[2:5]:  # D / N - 1 = 15, 7, 3 in the mean; two draws and one record scatter
        exact = 64 / row["directions"] - 1
        assert exact / 3 < row["variance"] < 3 * exact
    projected = [row["cosine"] for row in table if (row["estimator"], row["delta"]) == ("gn", "zero")]
    assert projected == sorted(projected)  # each span holds the one before it
    assert projected[-1] > 0.99
    assert {row["variance"] for row in table if row["estimator"] != "zo"} == {0}
    lens = [row for row in table if row["estimator"] == "lens"]
    assert [(row["delta"], row["directions"]) for row in lens] == [("zero", 0), ("half-way", 0)]
    assert all(-1 <= row["cosine"] <= 1 and row["cosine_deviation"] < 1e-6 and row["mu"] == 0 for row in lens)
    assert all(row["square_error"] == pytest.approx(2 - 2 * row["cosine"], rel=1e-4) for row in lens)  # equal lengths


@pytest.mark.usefixtures("quick")
def test_quantisation_robustness(
    fp32_bundle: Path, w8a16_bundle: Path, llama: Path, data: Path, tmp_path: Path, run: Any
) -> None:
    given = [fp32_bundle, "--data", data, "--limit", 1, "--model", llama, "--optimizer", "zo", "--other", w8a16_bundle]
    run(quantisation_robustness.main, [*given, "--out", tmp_path])
    rows = read(tmp_path, "quantisation_robustness")
    assert [row["edit_layer"] for row in rows] == ["int4", "int8", "int16", "fp16", "fp32", *["graph, fp32"] * 2]
    assert [row["suffix"] for row in rows[-2:]] == ["fp32", "w8a16"]
    assert rows[4]["loss"] == pytest.approx(rows[5]["loss"], abs=1e-3)  # the FP32 layer is the graph


def test_fidelity_is_exact_for_equal_read_outs() -> None:
    hidden = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    same, double = Fidelity.of(hidden, hidden), Fidelity.of(2 * hidden, hidden)
    assert (same.cosine, same.error) == (pytest.approx(1, abs=1e-6), 0)
    assert (double.cosine, double.error) == (pytest.approx(1, abs=1e-6), pytest.approx(1, abs=1e-6))


def test_runs_are_watched_at_their_first_delta(task: Any) -> None:
    captured, reference = task(EditConfig()), task(EditConfig(prefix_cache=PrefixCache.OFF))
    watched = WatchedProblem(captured.problem, reference.problem)
    before = captured.problem.meter.forwards
    for n in (1, 4):
        watched.readouts(np.ones((n, len(captured.value)), np.float32))
    assert len(watched.seen) == 2
    assert max(f.error for f in watched.seen) < 1e-4  # FP32 rounding
    assert captured.problem.meter.forwards - before == 5
    assert watched.rows is captured.problem.rows


def test_lens_sources(fp32_bundle: Path, llama: Path, data: Path, tmp_path: Path, run: Any) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in fp32_bundle.iterdir()}
    given = [fp32_bundle, "--data", data, "--facts", data, "--limit", 1, "--model", llama, "--rows", 48]
    run(lens_sources.main, [*given, "--out", tmp_path])
    rows = read(tmp_path, "lens_sources")
    assert [(row["fitted on"], row["rows"]) for row in rows] == [("text alone", 48), ("relations", 48), ("facts", 48)]
    assert len({row["held-out NLL"] for row in rows}) == 3
    assert all(row["forwards"] > 0 for row in rows)
    assert {path.name: path.stat().st_mtime_ns for path in fp32_bundle.iterdir()} == before
    assert not [path for path in fp32_bundle.parent.iterdir() if path.name.startswith(".lens-")]
