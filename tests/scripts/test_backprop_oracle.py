"""The reference by backpropagation has the runtime's loss and its gradient, and it learns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mobiedit.runtime import Bundle, EditConfig, LossConfig, Method, PrefixCache
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.search import SearchTask
from scripts.backprop_oracle import main
from scripts.support.backprop import ORACLE_LOSS, BackpropConfig, backprop
from scripts.support.host_model import HostModel
from scripts.support.host_problem import HostProblem

Task = Callable[[EditConfig], SearchTask]
LOSS = LossConfig(echo_tokens=32)  # the test tokenizer cuts words small: the target has more than two tokens
NONE, EXACT = (
    EditConfig(method=Method.ROME, prefix_cache=cache, loss=LOSS) for cache in (PrefixCache.OFF, PrefixCache.EXACT)
)


def some_delta(task: SearchTask, length: float) -> Any:
    direction = np.random.default_rng(0).standard_normal(len(task.value)).astype(np.float32)
    return np.float32(length * task.value_norm / np.linalg.norm(direction)) * direction


@pytest.mark.parametrize("config", [NONE, EXACT], ids=["none", "exact"])
@pytest.mark.parametrize("length", [0.0, 0.5, 3.0])
def test_loss_is_the_runtimes(task: Task, host: HostModel, config: EditConfig, length: float) -> None:
    captured = task(config)
    delta = some_delta(captured, length)
    ours = HostProblem(captured, host, LOSS, whole=config is NONE).evaluate(torch.from_numpy(delta))
    theirs = captured.evaluate(delta[None])
    # FP32 in torch against FP32 in ONNX Runtime through four layers: sums in another order.
    assert float(ours.total) == pytest.approx(float(theirs.total[0]), abs=1e-4)
    assert ours.target_probability == pytest.approx(float(theirs.target_probability[0]), abs=1e-4)


def test_rows_end_with_the_target_when_the_loss_has_no_echo(task: Task) -> None:
    with_echo, without = (task(EditConfig(loss=loss)).problem.rows for loss in (LOSS, ORACLE_LOSS))
    assert (len(with_echo.behind), without.behind) == (2, ())
    assert with_echo.rewriting[0].ids[: len(without.rewriting[0].ids)] == without.rewriting[0].ids
    assert with_echo.rewriting[1:] == without.rewriting[1:]


def test_gradient_is_that_of_the_runtimes_loss(task: Task, host: HostModel) -> None:
    captured = task(EXACT)
    delta = some_delta(captured, 0.5)
    gradient = HostProblem(captured, host, LOSS, whole=False).gradient(delta)
    step = np.float32(0.02 * captured.value_norm) * np.eye(len(delta), dtype=np.float32)[:16]
    differences = captured.evaluate(np.concatenate([delta + step, delta - step])).total
    estimate = (differences[:16] - differences[16:]) / (0.04 * captured.value_norm)
    # Central differences of FP32 losses: truncation of the third order and rounding of the loss's last bits.
    np.testing.assert_allclose(gradient[:16], estimate, atol=0.02 * float(np.abs(gradient).max()))


def test_cache_changes_no_number(task: Task, host: HostModel) -> None:
    none = HostProblem(task(NONE), host, LOSS, whole=True)
    captured = task(EXACT)
    exact = HostProblem(captured, host, LOSS, whole=False)
    delta = some_delta(captured, 1.0)
    np.testing.assert_allclose(none.gradient(delta), exact.gradient(delta), atol=1e-4)
    assert none.token_layers > exact.token_layers
    found = [
        backprop(task(config), host, BackpropConfig(steps=5, learning_rate=0.05), config).looks
        for config in (NONE, EXACT)
    ]
    np.testing.assert_allclose([look.loss for look in found[0]], [look.loss for look in found[1]], atol=1e-4)


def test_whole_forwards_count_every_layer(task: Task, host: HostModel) -> None:
    whole, meter = task(NONE), task(NONE).problem.meter
    before = meter.token_layers
    captured = task(NONE)
    spent = captured.problem.meter.token_layers
    captured.evaluate(np.zeros((1, len(captured.value)), np.float32))
    assert HostProblem(whole, host, LOSS, whole=True).token_layers == (captured.problem.meter.token_layers - spent)
    assert meter.token_layers == before


@pytest.mark.parametrize("config", [NONE, EXACT], ids=["none", "exact"])
def test_loss_falls_and_every_evaluation_is_counted(task: Task, host: HostModel, config: EditConfig) -> None:
    captured = task(config)
    before = captured.problem.meter.forwards
    found = backprop(captured, host, BackpropConfig(), config)
    assert found.looks[-1].loss < found.looks[0].loss - 0.5  # nats: random weights are hard to steer
    assert len(found.looks) == found.steps + 1 == captured.problem.meter.forwards - before
    final = captured.evaluate(found.delta[None])
    assert float(final.total[0]) == pytest.approx(found.looks[-1].loss, abs=1e-4)


def test_delta_is_clamped_and_the_search_stops(task: Task, host: HostModel) -> None:
    captured = task(EXACT)
    found = backprop(captured, host, BackpropConfig(steps=3, learning_rate=100.0, clamp=0.5), EXACT)
    assert np.linalg.norm(found.delta) == pytest.approx(0.5 * captured.value_norm, rel=1e-5)
    stopped = backprop(captured, host, BackpropConfig(stop_loss=1e9), EXACT)
    assert (stopped.steps, stopped.stopped_early) == (0, True)


def test_other_weights_are_refused(tiny: Bundle, make_checkpoint: Callable[..., Path]) -> None:
    other = make_checkpoint("llama", tie_word_embeddings=False)
    with pytest.raises(RequestError, match="other weights"):
        HostModel.load(tiny, str(other))


@pytest.mark.parametrize("cache", ["none", "exact"])
def test_script_writes_a_benchmarks_file(
    fp32_bundle: Path, llama: Path, data: Path, tmp_path: Path, run: Any, cache: str
) -> None:
    out = tmp_path / "oracle.json"
    given = [fp32_bundle, "--data", data, "--model", llama, "--steps", 2, "--cache", cache, "--json", out]
    given += ["--learning-rate", 0.25]
    result = run(main, [*given, "--limit", 1, "--fluency-tokens", 0])
    assert "forwards" in result.output
    document = json.loads(out.read_text("utf-8"))
    assert document["settings"]["optimizer"] == document["records"][0]["optimizer"] == "backprop"
    recorded = document["settings"]["edit"]["backprop"]
    assert (recorded["steps"], recorded["learning_rate"]) == (2, 0.25)
    assert "zeroth_order" not in document["settings"]["edit"]
    assert document["summary"]["forwards"]["median"] == 3


def test_edits_are_romes_own_when_contrast_is_off(
    fp32_bundle: Path, llama: Path, data: Path, tmp_path: Path, run: Any
) -> None:
    given = [fp32_bundle, "--data", data, "--model", llama, "--steps", 1, "--limit", 1, "--fluency-tokens", 0]
    contrasts = {}
    for name, more in {"on": (), "off": ("--no-contrast",)}.items():
        run(main, [*given, *more, "--json", tmp_path / name])
        contrasts[name] = json.loads((tmp_path / name).read_text("utf-8"))["settings"]["edit"]["contrasts"]
    assert contrasts["on"]
    assert contrasts["off"] == []
