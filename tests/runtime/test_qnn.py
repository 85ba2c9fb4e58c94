"""An edit, its reading and its undoing on the HTP simulator, where its wheel exists; and what is said where not."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import TensorProto, helper

from mobiedit.runtime import (
    Bundle,
    EditConfig,
    ExecutionConfig,
    ExecutionProvider,
    Method,
    ZerothOrderConfig,
    open_bundle,
    qnn,
)
from mobiedit.runtime.bundle_layout import GRAPHS, KEY_STATISTICS
from mobiedit.runtime.cli import main
from mobiedit.runtime.configuration import GaussNewtonConfig, Optimizer
from mobiedit.runtime.costs import CostMeter
from mobiedit.runtime.decoder import Slots
from mobiedit.runtime.edit_problem import EditProblem, prefill
from mobiedit.runtime.errors import ExecutionError, RequestError
from mobiedit.runtime.execution import Graph
from mobiedit.runtime.key_statistics import KeyStatistics
from mobiedit.runtime.prompt_rows import EditRequest, build_rows
from mobiedit.runtime.rank_one import rank_one_direction

simulator = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="the simulator is in the x86-64 Linux wheel alone"
)
NPU = ExecutionConfig(provider=ExecutionProvider.QNN, soc="SM8650")
MIN_COSINE = 0.999
"""Of each hidden state: the NPU rounds the same 16-bit integers a little differently, and the edit layer is in FP16."""
REQUEST = EditRequest("The book of {} is", "Paris", "the")
SEARCHES = {
    "gn": EditConfig(
        gauss_newton=GaussNewtonConfig(steps=2, directions=8, refinements=0, norm_penalty=0.0), force=True
    ),
    "zo": EditConfig(
        Optimizer.ZO, Method.ROME, zeroth_order=ZerothOrderConfig(steps=1, directions=1, check_every=1), force=True
    ),
}


@pytest.fixture(scope="module")
def path(w8a16_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the w8a16 bundle that may be edited."""
    return Path(shutil.copytree(w8a16_bundle, tmp_path_factory.mktemp("npu") / "bundle"))


def opened(path: Path, execution: ExecutionConfig) -> Bundle:
    """Open a bundle whose edits are checked on one canary: each costs eight runs of the simulator."""
    bundle = open_bundle(path, execution, verify=False)
    bundle.manifest = replace(bundle.manifest, canaries=bundle.manifest.canaries[:1])
    return bundle


@pytest.fixture(scope="module")
def npu(path: Path) -> Bundle:
    return opened(path, NPU)


@pytest.fixture(scope="module")
def cpu(path: Path) -> Bundle:
    return opened(path, ExecutionConfig(threads=1))


@pytest.fixture(autouse=True)
def without_edits(path: Path) -> Iterator[None]:
    """Leave the bundle without edits, whatever became of a test."""
    yield
    bundle = open_bundle(path, verify=False)
    for _ in bundle.edits():
        bundle.undo()


def cosines(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosines of the states [..., D]."""
    norms = np.linalg.norm(found, axis=-1) * np.linalg.norm(wanted, axis=-1)
    return np.asarray((found * wanted).sum(axis=-1) / norms)


def readouts(bundle: Bundle, meter: CostMeter) -> tuple[NDArray[np.float32], ...]:
    """Return what a search reads at two given deltas, as long as the value."""
    decoder = bundle.decoder.metered(meter)
    slots = Slots.empty(bundle.manifest.slots, bundle.manifest.shape)
    rows = build_rows(REQUEST, bundle.manifest.row_prefixes, bundle.tokenizer, 32)
    filled = prefill(decoder, rows, slots)
    inverse = KeyStatistics.find(bundle.path / KEY_STATISTICS)
    direction = rank_one_direction(filled.subject_key(rows), inverse)
    problem = EditProblem(decoder, rows, filled, direction, slots, meter)
    value = filled.subject_value(rows)
    deltas = np.random.default_rng(0).standard_normal((2, len(value))).astype(np.float32)
    deltas *= np.linalg.norm(value) / np.linalg.norm(deltas, axis=1, keepdims=True)
    return filled.edited.keys, filled.edited.hidden, filled.final, *problem.readouts(deltas)


@simulator
def test_every_node_is_on_the_npu_when_the_bundle_is_opened_for_it(npu: Bundle) -> None:
    told = npu.info()
    assert told["execution_provider"] == "qnn"
    assert told["soc"] == {"name": "SM8650", "model": 57, "htp": "v75", "found_in": "phones: Snapdragon 8 Gen 3"}
    assert set(told["nodes"]) == set(GRAPHS)
    for nodes in told["nodes"].values():
        assert nodes.pop("CPUExecutionProvider") == 0
        assert list(nodes) == ["QNNExecutionProvider"]
        assert nodes["QNNExecutionProvider"] > 0


@simulator
def test_hidden_states_are_the_cpus_when_deltas_are_the_same(npu: Bundle, cpu: Bundle) -> None:
    on_npu, on_cpu = CostMeter(), CostMeter()
    for found, wanted in zip(readouts(npu, on_npu), readouts(cpu, on_cpu), strict=True):
        assert found.shape == wanted.shape
        assert cosines(found, wanted).min() >= MIN_COSINE
    # Prefix, edit layer in pieces of 256 tokens, suffix; then 14 rows of two deltas in one batch.
    assert (on_npu.dispatches, on_cpu.dispatches) == (4, 4)
    assert on_npu.io_bytes > on_cpu.io_bytes
    assert (on_npu.forwards, on_npu.token_layers) == (on_cpu.forwards, on_cpu.token_layers)


@simulator
@pytest.mark.parametrize("optimizer", SEARCHES)
def test_edit_acts_as_on_the_cpu_and_is_undone_when_the_npu_runs_all(optimizer: str, npu: Bundle, cpu: Bundle) -> None:
    both = (npu, cpu)
    before = [bundle.log_probabilities(REQUEST.text) for bundle in both]
    result = npu.edit(REQUEST.prompt, REQUEST.subject, REQUEST.target, config=SEARCHES[optimizer])
    assert result.optimizer == optimizer
    assert result.cost.dispatches > result.steps
    for bundle in both:
        assert [edit.edit_id for edit in bundle.edits()] == [result.edit_id]
    after = [bundle.log_probabilities(REQUEST.text) for bundle in both]
    assert cosines(*after).min() >= MIN_COSINE
    on_npu, on_cpu = (now - was for now, was in zip(after, before, strict=True))
    assert np.abs(on_npu).max() > 1  # nats: the edit is in force
    assert cosines(on_npu.ravel(), on_cpu.ravel()) >= MIN_COSINE
    assert npu.ask(REQUEST.text, 4) == cpu.ask(REQUEST.text, 4)
    npu.undo()
    np.testing.assert_array_equal(npu.log_probabilities(REQUEST.text), before[0])


@simulator
def test_text_that_the_npu_is_asked_for_is_the_cpus(npu: Bundle, cpu: Bundle) -> None:
    for prompt in ("The capital of France is", "Paris"):
        assert npu.ask(prompt, 4) == cpu.ask(prompt, 4)


@simulator
def test_ask_prints_nothing_but_json_when_the_simulator_starts(path: Path) -> None:
    command = [sys.executable, "-m", "mobiedit.runtime.cli", "ask", str(path), "Paris", "--max-tokens", "1"]
    done = subprocess.run([*command, "--ep", "qnn", "--json"], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["prompt"] == "Paris"


@simulator
def test_late_notices_of_the_simulator_stay_off_standard_output() -> None:
    program = """
import os
from mobiedit.runtime.qnn import _keep_notices_off_standard_output as keep
print("before")
keep()
os.write(1, b"a thread's notice")
print("after")
keep()
os.write(1, b", another")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["before", "after"]
    assert done.stderr == "a thread's notice, another"


@simulator
def test_graph_is_refused_in_one_line_when_the_npu_does_not_take_a_node(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Det", ["x"], ["d"]), helper.make_node("Add", ["x", "d"], ["y"])],
        "det",
        values[:1],
        values[1:],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "a.onnx")
    with pytest.raises(ExecutionError, match=r"\Aa\.onnx does not run as a whole on the NPU of SM8650 \([^\n]+\Z"):
        Graph(tmp_path / "a.onnx", NPU)
    assert capfd.readouterr().out == ""


def test_bundle_is_refused_in_one_line_when_it_is_not_for_the_npu(fp32_bundle: Path) -> None:
    with pytest.raises(
        RequestError, match=r"\Athe bundle is fp32, the NPU takes w8a16, w8a8, mixed alone: [^\n]+--target qnn, "
    ):
        open_bundle(fp32_bundle, NPU)


def test_provider_is_named_when_it_is_not_installed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qnn, "installed", lambda: False)
    done = CliRunner().invoke(main, ["ask", str(path), "Paris", "--ep", "qnn", "--soc", "SM8650"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == ("error: the QNN provider is not installed: pip install onnxruntime-qnn, or use --ep cpu\n")


@simulator
def test_missing_device_is_told_when_the_provider_finds_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qnn.ort, "get_ep_devices", list)
    monkeypatch.setattr(qnn.ort, "register_execution_provider_library", lambda *_: None)
    with pytest.raises(ExecutionError, match=r"\Athe QNN provider finds no device here: use --ep cpu\Z"):
        open_bundle(path, NPU, verify=False).ask("Paris", 1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--ep", "qnn", "--soc", "SM1"], "SoC 'SM1' is not known: give one of "),
        (["--soc", "SM8650"], "mean nothing on the CPU: add --ep qnn"),
        (["--ep", "qnn", "--soc", "SM8650", "--qnn-option", "speed=1"], "QNN option 'speed' is not known"),
        (["--ep", "qnn", "--soc", "SM8650", "--qnn-option", "burst"], "'burst' is not of the form NAME=VALUE"),
    ],
)
@pytest.mark.parametrize("command", ["ask", "info", "edit", "bench"])
def test_option_is_refused_in_one_line_when_it_cannot_be(
    command: str, options: list[str], told: str, fp32_bundle: Path
) -> None:
    arguments = {
        "ask": ["Paris"],
        "info": [],
        "edit": ["--prompt", "{} is", "--subject", "Paris", "--target", "old"],
        "bench": ["--data", "data.json", "--json", "out.json"],
    }
    done = CliRunner().invoke(main, [command, str(fp32_bundle), *arguments[command], *options])
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_runtime_does_not_import_the_provider_when_it_is_imported() -> None:
    script = "import sys, mobiedit.runtime.cli; sys.exit('onnxruntime_qnn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0
