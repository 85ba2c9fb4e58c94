"""Context binaries of the tiny Llama for two SoCs: run on the simulator, and refused where they are the wrong ones."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from mobiedit.export.compilation import compile_contexts
from mobiedit.runtime import Bundle, EditConfig, ExecutionConfig, ExecutionProvider, open_bundle, qnn, static_graphs
from mobiedit.runtime.cli import main
from mobiedit.runtime.configuration import GaussNewtonConfig
from mobiedit.runtime.context_binary import BinaryTarget, read_target
from mobiedit.runtime.errors import BundleError, ExecutionError, ExportError
from mobiedit.runtime.files import sha256_of
from mobiedit.runtime.journal_records import EditRecord
from mobiedit.runtime.manifest import FileEntry, Manifest, read_manifest, to_json
from mobiedit.runtime.soc import find_soc
from mobiedit.runtime.static_shapes import Variant

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="the compiler is in the x86-64 Linux wheel alone"
)
TEXT, PREFILL, SEARCH = (Variant(*sizes).axes for sizes in ((1, 16, 64), (7, 64, 16), (28, 16, 64)))
SMALLEST = {"prefix": (TEXT,), "edit": ({"batch": 1, "tokens": 16},), "suffix": (TEXT,), "head": ({"rows": 1},)}
SHAPES = {
    "prefix": (TEXT, PREFILL),
    "edit": ({"batch": 1, "tokens": 16}, {"batch": 1, "tokens": 256}),
    "suffix": (TEXT, PREFILL, SEARCH),
    "head": ({"rows": 1}, {"rows": 64}),
}
"""Fewer than an export compiles, for time's sake: one for each kind of run."""
CONFIG = EditConfig(gauss_newton=GaussNewtonConfig(steps=2, directions=8, refinements=0, norm_penalty=0.0), force=True)


def on(soc: str) -> ExecutionConfig:
    return ExecutionConfig(provider=ExecutionProvider.QNN, soc=soc)


def restate(path: Path, change: Callable[[Manifest], Manifest] = lambda manifest: manifest) -> None:
    """Write a bundle's manifest anew, changed, with the files as they are now."""
    files = {file.name: FileEntry(sha256_of(file), file.stat().st_size) for file in path.iterdir() if file.is_file()}
    del files["manifest.json"]
    manifest = replace(change(read_manifest(path)), files=files)
    (path / "manifest.json").write_text(to_json(manifest), encoding="utf-8")


@pytest.fixture(scope="module")
def compiled(w8a16_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The w8a16 bundle with contexts for SM8650, and the smallest ones for SM8750; not to be changed but for edits."""
    path = Path(shutil.copytree(w8a16_bundle, tmp_path_factory.mktemp("compiled") / "bundle"))
    contexts = {
        soc: compile_contexts(path, find_soc(soc), shapes) for soc, shapes in (("SM8650", SHAPES), ("SM8750", SMALLEST))
    }
    restate(path, lambda manifest: replace(manifest, contexts=contexts))
    return path


@pytest.fixture
def copied(compiled: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(compiled, tmp_path / "bundle"))


@pytest.fixture
def opened_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The files that sessions on the NPU are opened from."""
    names: list[str] = []
    original = qnn.open_session

    def noted(path: Path, *others: object) -> object:
        names.append(path.name)
        return original(path, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(qnn, "open_session", noted)
    return names


def edited(path: Path) -> tuple[EditRecord, list[object]]:
    """Teach a fact on the NPU of SM8650; return the edit, and what is read with it in force."""
    bundle: Bundle = open_bundle(path, on("SM8650"), verify=False)
    bundle.manifest = replace(bundle.manifest, canaries=bundle.manifest.canaries[:1])  # each takes eight runs
    bundle.edit("The book of {} is", "Paris", "the", config=CONFIG)
    read = [bundle.log_probabilities("The book of Paris is"), bundle.ask("The book of Paris is", 3)]
    return bundle.undo(), read


def test_each_context_is_for_its_soc_when_it_is_compiled(compiled: Path) -> None:
    manifest = read_manifest(compiled)
    for name, htp, shapes in (("SM8650", 75, SHAPES), ("SM8750", 79, SMALLEST)):
        contexts = manifest.contexts[name]
        assert (contexts.htp, contexts.shapes) == (htp, shapes)
        assert contexts.qairt.startswith(qnn.qairt_version() + ".")
        for file in contexts.files:
            assert read_target(compiled / file.binary) == BinaryTarget(name, htp, contexts.qairt)
            assert {file.wrapper, file.binary} <= set(manifest.files)


def test_edit_is_the_same_when_sessions_open_contexts_instead_of_compiling(
    compiled: Path, copied: Path, opened_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    edit, read = edited(compiled)
    assert set(opened_files) == {file.wrapper for file in read_manifest(compiled).contexts["SM8650"].files}
    opened_files.clear()
    restate(copied, lambda manifest: replace(manifest, contexts={}))
    monkeypatch.setattr(static_graphs, "all_shapes", lambda rows, context: SHAPES)
    wanted_edit, wanted_read = edited(copied)
    assert set(opened_files) == {"prefix.onnx", "edit.onnx", "suffix.onnx", "head.onnx"}
    # No tolerance: the same compiler makes the same graph of the same file, and the simulator computes integers.
    np.testing.assert_array_equal(edit.delta, wanted_edit.delta)
    assert np.abs(edit.delta).max() > 0
    np.testing.assert_array_equal(read[0], wanted_read[0])
    assert read[1] == wanted_read[1]


def test_info_lists_the_contexts_when_the_cpu_runs_the_graphs(compiled: Path) -> None:
    told = open_bundle(compiled, verify=False).info()["contexts"]
    assert {soc: (each["htp"], each["files"]) for soc, each in told.items()} == {
        "SM8650": ("v75", 9),
        "SM8750": ("v79", 4),
    }
    assert told["SM8750"]["bytes"] == sum(file.stat().st_size for file in compiled.glob("*.SM8750.*"))


def test_bundle_is_refused_in_one_line_when_its_contexts_are_for_other_socs(compiled: Path) -> None:
    done = CliRunner().invoke(main, ["ask", str(compiled), "Paris", "--ep", "qnn", "--soc", "SM8550"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "are for SM8650, SM8750, not for SM8550: give --soc with one of these" in done.stderr
    assert done.stderr.count("\n") == 1


def test_binary_is_refused_when_it_is_another_socs(copied: Path) -> None:
    shutil.copy(copied / "head.SM8750.1_qnn.bin", copied / "head.SM8650.1_qnn.bin")
    with pytest.raises(BundleError, match=r"head\.SM8650\.1_qnn\.bin"):
        open_bundle(copied, on("SM8650"))
    restate(copied)  # the hashes are right now, so it is for the bytes to tell
    with pytest.raises(BundleError, match=r"\Acontext binary head\.SM8650\.1_qnn\.bin is for SM8750, v79, [^\n]+\Z"):
        open_bundle(copied, on("SM8650"))
    open_bundle(copied, on("SM8750"))


@pytest.mark.parametrize("size", [0, 1000, -1])
def test_binary_is_refused_when_it_is_cut_short(size: int, copied: Path) -> None:
    path = copied / "head.SM8650.1_qnn.bin"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(BundleError, match=r"head\.SM8650\.1_qnn\.bin has \d+ bytes instead of \d+"):
        open_bundle(copied, on("SM8650"), verify=False)


def test_wrapper_is_refused_when_it_takes_another_binary(copied: Path) -> None:
    shutil.copy(copied / "head.SM8650.64.onnx", copied / "head.SM8650.1.onnx")
    restate(copied)
    with pytest.raises(
        BundleError, match=r"\Ahead\.SM8650\.1\.onnx does not take head\.SM8650\.1_qnn\.bin alone; [^\n]+\Z"
    ):
        open_bundle(copied, on("SM8650"))


@pytest.mark.parametrize("change", [{"htp": 79}, {"qairt": "2.50.0.1"}])
def test_contexts_are_refused_when_the_manifest_states_another_target(change: dict[str, object], copied: Path) -> None:
    def changed(manifest: Manifest) -> Manifest:
        stated = replace(manifest.contexts["SM8650"], **change)  # type: ignore[arg-type]
        return replace(manifest, contexts={**manifest.contexts, "SM8650": stated})

    restate(copied, changed)
    with pytest.raises(BundleError, match=r"SM8650[^\n]+export the bundle again"):
        open_bundle(copied, on("SM8650"))


@pytest.mark.parametrize(("installed", "refused"), [("2.50.9", True), ("2.51.0", False), ("2.100.0", False)])
def test_contexts_are_refused_when_a_newer_qairt_made_them(
    installed: str, refused: bool, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qnn, "qairt_version", lambda: installed)
    if not refused:
        open_bundle(compiled, on("SM8650"), verify=False)
        return
    with pytest.raises(ExecutionError, match=r"\Athe context binaries for SM8650 are of QAIRT [^\n]+ is 2\.50\.9: "):
        open_bundle(compiled, on("SM8650"), verify=False)


def test_contexts_are_refused_when_the_provider_is_not_installed(
    compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qnn, "installed", lambda: False)
    with pytest.raises(ExecutionError, match="the QNN provider is not installed: "):
        open_bundle(compiled, on("SM8650"), verify=False)
    assert open_bundle(compiled, verify=False).ask("Paris", 1)


def test_compiling_is_refused_in_one_line_when_the_npu_does_not_take_a_node(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 2, 2]) for name in "xy"]
    nodes = [helper.make_node("Det", ["x"], ["d"]), helper.make_node("Add", ["x", "d"], ["y"])]
    graph = helper.make_graph(nodes, "det", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "head.onnx")
    with pytest.raises(ExportError, match=r"\Ahead\.onnx does not run as a whole [^\n]+: leave SM8650 out of --soc\Z"):
        compile_contexts(tmp_path, find_soc("SM8650"), {"head": ({"rows": 2},)})


def test_wrapper_is_named_by_its_shape(compiled: Path) -> None:
    assert read_manifest(compiled).contexts["SM8650"].wrapper("suffix", SEARCH) == "suffix.SM8650.28x16x64.onnx"
