"""The export as a whole: what the manifest says, and that a bundle is there whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from mobiedit.calibration.activation_ranges import RangeConfig, RangeMethod
from mobiedit.calibration.text import held_out_text
from mobiedit.export import check, fp32_stage, pipeline, quantise_stage
from mobiedit.export.checkpoint import find_source, load_checkpoint
from mobiedit.export.configuration import ExportConfig, Precision
from mobiedit.export.pipeline import export_bundle
from mobiedit.export.prediction import predict
from mobiedit.export.progress import Stages
from mobiedit.runtime import open_bundle
from mobiedit.runtime.bundle_writer import BundleWriter
from mobiedit.runtime.errors import BundleError, BusyError, ExportError, RequestError, StorageError
from mobiedit.runtime.key_statistics import KeyStatistics
from mobiedit.runtime.manifest import read_manifest

FILES = {
    *(f"{graph}.onnx{data}" for graph in ("prefix", "edit", "suffix", "head") for data in ("", ".data")),
    "constants.safetensors",
    "embedding.safetensors",
    "key_statistics.safetensors",
    "lens.safetensors",
    "tokenizer.json",
}
STATIC_FILES = {"ranges.json"}
PRECISIONS = (Precision.FP32, Precision.W8A16)
Contents = Callable[[Path], dict[str, str]]


@pytest.fixture(params=PRECISIONS)
def any_bundle(request: pytest.FixtureRequest) -> Path:
    """Each of the session's bundles in turn; not to be changed."""
    bundle: Path = request.getfixturevalue(f"{request.param}_bundle")
    return bundle


@pytest.fixture
def config(llama: Path, tmp_path: Path) -> ExportConfig:
    """The export of the session's bundles, to a place of its own."""
    out = tmp_path / "place" / "bundle"
    return ExportConfig(str(llama), out, layer=1, precision=Precision.W8A16, slots=3, lens_rows=24)


def export(config: ExportConfig) -> pipeline.ExportReport:
    return export_bundle(config, Stages(quiet=True))


def left(config: ExportConfig) -> list[str]:
    """Everything at the bundle's place, hidden names included."""
    parent = config.out.parent
    return sorted(path.name for path in parent.iterdir()) if parent.exists() else []


def read_nodes(path: Path) -> list[onnx.NodeProto]:
    return list(onnx.load(path, load_external_data=False).graph.node)


def fail_with(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def home_of(stage: str) -> ModuleType:
    """The module that calls a stage."""
    return next(module for module in (pipeline, fp32_stage, quantise_stage) if hasattr(module, stage))


# The manifest


def test_manifest_lists_every_file_with_its_hash_when_written(any_bundle: Path) -> None:
    manifest = read_manifest(any_bundle)
    files = FILES | STATIC_FILES if manifest.precision == "w8a16" else FILES
    assert {path.name for path in any_bundle.iterdir()} == files | {"manifest.json", "edits"}
    assert manifest.files.keys() == files
    for name, entry in manifest.files.items():
        content = (any_bundle / name).read_bytes()
        assert (entry.sha256, entry.size) == (hashlib.sha256(content).hexdigest(), len(content)), name
    assert not list((any_bundle / "edits").iterdir())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_manifest_states_the_model_and_the_options_when_written(
    precision: Precision, llama: Path, request: pytest.FixtureRequest
) -> None:
    manifest = read_manifest(request.getfixturevalue(f"{precision}_bundle"))
    checkpoint = load_checkpoint(find_source(str(llama)))
    assert manifest.base == checkpoint.base
    assert manifest.shape == checkpoint.shape
    assert (manifest.edit_layer, manifest.slots, manifest.precision, manifest.target) == (1, 3, precision, "cpu")
    assert (manifest.sink_token, manifest.eos_tokens) == (0, (0,))
    assert manifest.mask_value == -100
    assert manifest.row_prefixes[0] == "{}"
    assert len(manifest.row_prefixes) == 6
    assert len(set(manifest.canaries)) == len(manifest.canaries) == 8


def test_manifest_states_tools_and_time_when_written(any_bundle: Path) -> None:
    manifest = read_manifest(any_bundle)
    assert manifest.tools.keys() == {"mobiedit", "torch", "transformers", "onnx", "onnxruntime"}
    for name, version in manifest.tools.items():
        assert version == importlib.metadata.version(name)
    assert datetime.fromisoformat(manifest.created) <= datetime.now(UTC)


def test_manifest_states_the_checks_when_written(any_bundle: Path) -> None:
    checks = read_manifest(any_bundle).checks
    assert checks.keys() == {"fp32", "written", "sink_nll", "npu_cosine"}
    assert checks["npu_cosine"] == {}  # for another target
    assert checks["sink_nll"].keys() == {"0"}
    fields = {"max_abs_logit_difference", "mean_cosine", "nll", "nll_change", "tokens"}
    assert checks["fp32"].keys() == checks["written"].keys() == fields
    assert 0 < checks["fp32"]["max_abs_logit_difference"] <= check.FP32_TOLERANCE
    assert checks["written"]["mean_cosine"] >= check.LIMITS[Precision.W8A16].min_cosine
    assert checks["written"]["nll_change"] <= check.LIMITS[Precision.W8A16].max_nll_change


def test_checks_are_of_the_written_graphs_when_quantised(fp32_bundle: Path, w8a16_bundle: Path) -> None:
    exact, quantised = (read_manifest(bundle).checks for bundle in (fp32_bundle, w8a16_bundle))
    assert exact["written"] == exact["fp32"]
    assert quantised["written"]["max_abs_logit_difference"] > 10 * quantised["fp32"]["max_abs_logit_difference"]


def test_key_statistics_have_the_wanted_count_when_text_is_long_enough(any_bundle: Path) -> None:
    statistics = read_manifest(any_bundle).statistics
    of_keys = {"keys", "wanted", "rank", "bytes", "seconds"}
    assert statistics.keys() - {"ranges"} == {*of_keys, "multiplier", "lens", "layer"}
    assert statistics["layer"] == {"chosen": 1, "asked_for": True}
    assert (statistics["keys"], statistics["wanted"], statistics["multiplier"]) == (1280, 1280, 10.0)
    path = any_bundle / "key_statistics.safetensors"
    assert (statistics["rank"], statistics["bytes"]) == (127, path.stat().st_size)
    inverse = KeyStatistics.find(path) @ np.eye(128, dtype=np.float32)
    assert np.linalg.eigvalsh(inverse.astype(np.float64)).min() > 0


def test_ranges_are_in_a_file_and_summed_up_in_the_manifest_when_static(w8a16_bundle: Path) -> None:
    record = json.loads((w8a16_bundle / "ranges.json").read_text())
    stated = read_manifest(w8a16_bundle).statistics["ranges"]
    assert (record["method"], record["samples"]) == (stated["method"], stated["samples"]) == ("minmax", 32)
    assert record["graphs"].keys() == stated["graphs"].keys() == {"prefix", "suffix", "head"}
    for graph, ends in record["graphs"].items():
        bounds = [max(-low, high) for low, high in ends.values()]
        assert all(low <= 0 <= high and low < high for low, high in ends.values())
        expected = {"tensors": len(ends), "median_bound": median(bounds), "largest_bound": max(bounds)}
        assert stated["graphs"][graph] == {**expected, "clipped": 0.0}


def test_manifest_has_no_ranges_when_activations_are_not_static(fp32_bundle: Path) -> None:
    assert "ranges" not in read_manifest(fp32_bundle).statistics


def test_ranges_are_taken_from_the_lines_that_were_asked_for_when_quantised(
    config: ExportConfig, written_graphs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    fake = quantise_stage.quantise_static

    def watch(source: Path, target: Path, feeds: list[Any], ranges: RangeConfig) -> Any:
        seen.append((len(feeds), ranges))
        return fake(source, target, feeds, ranges)

    monkeypatch.setattr(quantise_stage, "quantise_static", watch)
    report = export(replace(config, ranges=RangeMethod.CLIP, samples=3))
    assert seen == 3 * [(6, RangeConfig(RangeMethod.CLIP))]  # two pieces of each line
    stated = report.manifest.statistics["ranges"]
    assert (stated["method"], stated["samples"]) == ("clip", 3)


@pytest.mark.parametrize(("precision", "dtype"), [(Precision.FP32, np.float32), (Precision.W8A16, np.float16)])
def test_embedding_has_the_precisions_numbers_when_written(
    precision: Precision, dtype: type, llama: Path, request: pytest.FixtureRequest
) -> None:
    written = load_file(request.getfixturevalue(f"{precision}_bundle") / "embedding.safetensors")["embedding"]
    source = load_file(llama / "model.safetensors")["model.embed_tokens.weight"]
    assert written.dtype == dtype
    np.testing.assert_array_equal(written, source.astype(dtype))


def test_bundle_opens_when_written(any_bundle: Path) -> None:
    assert open_bundle(any_bundle).info()["slots"] == {"used": 0, "total": 3}


def test_report_notes_missing_keys_when_calibration_text_is_short(
    config: ExportConfig, written_graphs: None, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("\n".join(held_out_text()[:5]))
    report = export(replace(config, calibration_text=tmp_path / "text"))
    statistics = report.manifest.statistics
    assert 0 < statistics["keys"] < statistics["wanted"] == 1280
    assert len(report.notes) == 1
    assert f"{statistics['keys']} tokens, 1280 were asked for" in report.notes[0]
    assert read_manifest(config.out) == report.manifest


@pytest.mark.parametrize("precision", [Precision.W8, Precision.W4, Precision.FP16])
def test_bundle_has_the_precisions_graphs_when_they_need_no_calibration(
    precision: Precision, config: ExportConfig, written_graphs: None
) -> None:
    report = export(replace(config, precision=precision))
    bundle = open_bundle(config.out)
    assert bundle.manifest.precision == precision
    assert {path.name for path in config.out.iterdir()} == FILES | {"manifest.json", "edits"}
    assert load_file(config.out / "embedding.safetensors")["embedding"].dtype == np.float16
    assert bundle.ask("The capital of France is", 2)
    plan, written = predict(replace(config, precision=precision)).files, report.manifest.files
    for graph in ("prefix", "suffix", "head"):
        # As in the prediction of the other precisions: norms and small scales weigh more on a tiny model.
        assert written[f"{graph}.onnx.data"].size == pytest.approx(plan[f"{graph}.onnx"], rel=0.25), graph


def test_head_keeps_8_bits_when_precision_is_w4(config: ExportConfig, written_graphs: None) -> None:
    export(replace(config, precision=Precision.W4))
    bits = {
        graph: {a.i for node in read_nodes(config.out / f"{graph}.onnx") for a in node.attribute if a.name == "bits"}
        for graph in ("prefix", "suffix", "head")
    }
    assert bits == {"prefix": {4}, "suffix": {4}, "head": {8}}


# Whole or not at all


STAGES = (
    "load_checkpoint",
    "choose_sink",
    "write_graph",
    "sink_cache",
    "compare",
    "require_exact",
    "record_graph_inputs",
    "quantise_static",
    "write_ranges",
    "require_close",
    "measure_layer",
    "fit_export_lens",
    "choose_canaries",
    "to_json",
)


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_is_left_when_a_stage_is_interrupted(
    stage: str, config: ExportConfig, written_graphs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home_of(stage), stage, fail_with(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        export(config)
    assert left(config) == []


@pytest.mark.parametrize("stage", ["write_graph", "to_json"])
def test_nothing_is_left_when_a_stage_fails(
    stage: str, config: ExportConfig, written_graphs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home_of(stage), stage, fail_with(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        export(config)
    assert left(config) == []


def test_nothing_is_left_when_the_last_rename_fails(
    config: ExportConfig, written_graphs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "rename", fail_with(OSError(errno.EACCES, "no")))
    with pytest.raises(StorageError, match="permission denied"):
        export(config)
    assert left(config) == []


def test_existing_bundle_is_refused_when_not_forced(
    config: ExportConfig, bundle_path: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "load_checkpoint", fail_with(AssertionError("weights were loaded")))
    before = contents(bundle_path)
    siblings = sorted(bundle_path.parent.iterdir())
    with pytest.raises(BundleError, match=r"^[^\n]+ exists: give another place, or --force [^\n]+$"):
        export(replace(config, out=bundle_path))
    assert contents(bundle_path) == before
    assert sorted(bundle_path.parent.iterdir()) == siblings


def test_existing_bundle_is_replaced_with_its_edits_when_forced(
    config: ExportConfig, bundle_path: Path, written_graphs: None
) -> None:
    (bundle_path / "edits" / "journal").write_text("of the old bundle")
    (bundle_path / "stray").write_text("in the old bundle")
    assert read_manifest(bundle_path).precision == "fp32"
    export(replace(config, out=bundle_path, force=True))
    assert open_bundle(bundle_path).manifest.precision == "w8a16"
    assert {path.name for path in bundle_path.iterdir()} == FILES | STATIC_FILES | {"manifest.json", "edits"}
    assert not list((bundle_path / "edits").iterdir())
    assert list(bundle_path.parent.iterdir()) == [bundle_path]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug")], ids=["interrupted", "failed"])
def test_existing_bundle_is_untouched_when_a_forced_export_fails(
    error: BaseException,
    config: ExportConfig,
    bundle_path: Path,
    written_graphs: None,
    contents: Contents,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (bundle_path / "edits" / "journal").write_text("of the old bundle")
    before = contents(bundle_path)
    monkeypatch.setattr(pipeline, "choose_canaries", fail_with(error))
    with pytest.raises(type(error)):
        export(replace(config, out=bundle_path, force=True))
    assert contents(bundle_path) == before
    assert list(bundle_path.parent.iterdir()) == [bundle_path]


def test_existing_bundle_comes_back_when_the_new_one_cannot_take_its_place(
    config: ExportConfig,
    bundle_path: Path,
    written_graphs: None,
    contents: Contents,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, rename = contents(bundle_path), Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError(errno.EACCES, "no")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(StorageError, match="permission denied"):
        export(replace(config, out=bundle_path, force=True))
    assert contents(bundle_path) == before
    assert list(bundle_path.parent.iterdir()) == [bundle_path]


@pytest.mark.parametrize("force", [False, True])
def test_place_is_refused_when_it_is_a_link(
    force: bool, config: ExportConfig, bundle_path: Path, tmp_path: Path, contents: Contents
) -> None:
    link = tmp_path / "link"
    try:
        link.symlink_to(bundle_path)
    except OSError:
        pytest.skip("this user may not make links")
    before = contents(bundle_path)
    with pytest.raises(BundleError, match="is a link"):
        export(replace(config, out=link, force=force))
    assert contents(bundle_path) == before
    assert link.is_symlink()
    assert sorted(tmp_path.iterdir()) == [bundle_path, link]


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file"])
def test_place_is_refused_when_it_is_no_bundle_even_if_forced(
    kind: str, config: ExportConfig, contents: Contents
) -> None:
    if kind == "file":
        config.out.parent.mkdir()
        config.out.write_text("mine")
    else:
        config.out.mkdir(parents=True)
    if kind == "folder":
        (config.out / "letter").write_text("mine")
    before = contents(config.out.parent)
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        export(replace(config, force=True))
    assert contents(config.out.parent) == before


def test_place_is_refused_in_one_line_when_its_parent_is_a_file(config: ExportConfig, tmp_path: Path) -> None:
    (tmp_path / "place").write_text("mine")
    with pytest.raises((BundleError, StorageError), match=r"\A[^\n]+\Z"):
        export(config)
    assert (tmp_path / "place").read_text() == "mine"


# The disk


@pytest.mark.parametrize("file", ["constants.safetensors", "key_statistics.safetensors", "lens.safetensors"])
def test_export_is_a_storage_error_when_the_disk_is_full(
    file: str, config: ExportConfig, written_graphs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mobiedit.runtime import bundle_writer

    save = bundle_writer.save_file

    def fill(tensors: dict[str, Any], path: Path) -> None:
        if path.name == file:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path)

    monkeypatch.setattr(bundle_writer, "save_file", fill)
    with pytest.raises(StorageError, match=rf"^cannot write {file}: the disk is full; [^\n]+$"):
        export(config)
    assert left(config) == []


@pytest.fixture
def limit_file_size() -> Any:
    """Return a function that makes the system refuse larger files, as a full disk would: no library is replaced."""
    resource = pytest.importorskip("resource", reason="limits are of POSIX")
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, former)


def test_export_is_a_storage_error_when_the_system_refuses_tensors(
    config: ExportConfig, monkeypatch: pytest.MonkeyPatch, limit_file_size: Callable[[int], None]
) -> None:
    monkeypatch.setattr(
        fp32_stage, "write_graph", lambda spec, path: None
    )  # the embedding is written before they are read
    limit_file_size(100_000)
    with pytest.raises(StorageError, match=r"\Acannot write [^\n]+\Z"):
        export(config)
    assert left(config) == []


def test_export_is_a_storage_error_when_the_system_refuses_a_graph(
    config: ExportConfig, limit_file_size: Callable[[int], None]
) -> None:
    limit_file_size(100_000)
    with pytest.raises(StorageError, match=r"\Acannot write [^\n]+\Z"):
        export(config)
    assert left(config) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_export_is_a_storage_error_when_the_place_is_read_only(config: ExportConfig, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="permission denied"):
            export(config)
    finally:
        tmp_path.chmod(0o700)


# Refusals before and after the work


@pytest.mark.parametrize("layer", [-1, 3, 99])
def test_layer_is_refused_before_weights_are_loaded_when_out_of_range(
    layer: int, config: ExportConfig, llama: Path, tmp_path: Path
) -> None:
    damaged = Path(shutil.copytree(llama, tmp_path / "model"))
    (damaged / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(RequestError, match=f"--layer {layer} is not in the model"):
        export(replace(config, model=str(damaged), layer=layer))
    assert left(config) == []


def test_calibration_text_is_refused_before_weights_are_loaded_when_missing(
    config: ExportConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "load_checkpoint", fail_with(AssertionError("weights were loaded")))
    with pytest.raises(ExportError, match="cannot be read"):
        export(replace(config, calibration_text=tmp_path / "missing"))
    assert left(config) == []


def test_export_is_refused_when_quantised_graphs_are_off(
    config: ExportConfig, written_graphs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(check.LIMITS, Precision.W8A16, check.Limits(2.0, 0.0))
    with pytest.raises(ExportError, match=r"^the w8a16 graphs are off [^\n]+$"):
        export(config)
    assert left(config) == []


def test_export_is_refused_when_fp32_graphs_are_off(
    config: ExportConfig, written_graphs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "FP32_TOLERANCE", -1.0)
    with pytest.raises(ExportError, match=r"^the FP32 graphs differ [^\n]+$"):
        export(config)
    assert left(config) == []


def test_export_is_refused_when_embedding_does_not_fit_half_precision(
    config: ExportConfig, written_graphs: None, llama: Path, tmp_path: Path
) -> None:

    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][7, 7] = 1e5  # FP16 ends at 65504
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with np.errstate(over="ignore"), pytest.raises(ExportError, match="does not fit FP16: use --precision fp32"):
        export(replace(config, model=str(folder)))
    assert left(config) == []


def test_prediction_is_refused_when_weights_have_no_header(config: ExportConfig, llama: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(llama, tmp_path / "model"))
    (damaged / "model.safetensors").write_bytes(b"no header")
    with pytest.raises(ExportError, match=r"^[^\n]+ cannot be loaded [^\n]+: check the checkpoint$"):
        predict(replace(config, model=str(damaged)))
    with pytest.raises(RequestError, match="--layer 7 is not in the model"):
        predict(replace(config, model=str(damaged), layer=7))
    assert left(config) == []


def test_prediction_is_of_mapped_weights_when_checkpoint_is_in_half_precision(
    config: ExportConfig, llama: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    tensors = {name: tensor.astype(np.float16) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    full, half = (
        predict(replace(config, model=str(model), precision=Precision.W8)).peak_bytes for model in (llama, folder)
    )
    assert half < full
    rotated = replace(config, model=str(folder), precision=Precision.W8, rotate=True)
    assert predict(rotated).peak_bytes >= full  # it is in FP32 first


def test_bundle_moved_aside_by_a_killed_export_comes_back(bundle_path: Path) -> None:
    workshop = bundle_path.parent / f".{bundle_path.name}.export"
    workshop.mkdir()
    bundle_path.rename(workshop / "old")
    (workshop / "new").mkdir()
    with pytest.raises(BundleError, match="exists"), BundleWriter(bundle_path):
        pass
    assert (bundle_path / "manifest.json").is_file()
    assert not workshop.exists()


def test_second_export_to_the_same_place_is_refused(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "bundle") as first:
        (first.folder / "kept").write_text("x")
        with pytest.raises(BusyError, match="another export is writing"), BundleWriter(tmp_path / "bundle"):
            pass
        assert (first.folder / "kept").read_text() == "x"
    assert list(tmp_path.iterdir()) == []
