"""The command: exit codes, one line for an error, and JSON that is nothing but JSON."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file

from mobiedit.calibration.activation_ranges import RangeMethod
from mobiedit.export import pipeline, quantise_stage
from mobiedit.export.cli import _choice_line, _range_lines, main
from mobiedit.export.static_quantisation import quantise_static
from mobiedit.runtime.manifest import read_manifest


@pytest.fixture(autouse=True)
def logging_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what the command sets up for a process of its own."""
    import transformers

    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    verbosity, level = transformers.utils.logging.get_verbosity(), logging.getLogger().level
    yield
    transformers.utils.logging.set_verbosity(verbosity)
    transformers.utils.logging.enable_progress_bar()
    logging.getLogger().setLevel(level)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


QUICK = ["--slots", 3, "--lens-rows", 24]


def assert_refused(result: Result, message: str) -> None:
    """One line on standard error, nothing on standard output, exit code 2."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


# Sizes alone


@pytest.fixture
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of SmolLM2-135M's shape without a weight."""
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("smollm2")
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "vocab_size": 49152, "num_hidden_layers": 30}
    LlamaConfig(**sizes, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True).save_pretrained(folder)
    save_file({"its.header": np.zeros(1, np.float32)}, folder / "model.safetensors")  # that alone is read
    return folder


@pytest.mark.parametrize(
    ("precision", "head"), [("fp32", 108.0), ("fp16", 54.0), ("w8a16", 27.0), ("w8", 30.4), ("w4", 30.4)]
)
def test_dry_run_prints_sizes_and_writes_nothing_when_asked_for(
    precision: str, head: float, smollm2: Path, out: Path, tmp_path: Path
) -> None:
    result = run(smollm2, "--out", out, "--dry-run", "--precision", precision)
    assert result.exit_code == 0, result.output
    lines = {line.rsplit(maxsplit=2)[0]: line.rsplit(maxsplit=2)[1:] for line in result.stdout.splitlines()}
    files = ["prefix.onnx", "edit.onnx", "suffix.onnx", "head.onnx", "embedding.safetensors"]
    files += ["lens.safetensors", "key_statistics.safetensors"]
    assert list(lines) == [*files, "bundle", "peak memory of the export"]
    assert all(float(size) > 0 and unit == "MiB" for size, unit in lines.values())
    assert float(lines["head.onnx"][0]) == head  # 49152 x 576 weights, printed with one decimal
    assert result.stderr.startswith("note: auto: ")  # no layer was asked for
    assert "layer 10" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_dry_run_prints_json_and_writes_nothing_when_asked_for(llama: Path, out: Path, tmp_path: Path) -> None:
    result = run(llama, "--out", out, "--dry-run", "--precision", "fp32", "--layer", 1, "--json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan.keys() == {"files", "total_bytes", "peak_bytes", "parameters", "notes"}
    assert plan["notes"] == []
    assert plan["files"]["edit.onnx"] == 4 * 3 * 64 * 128
    assert plan["total_bytes"] == sum(plan["files"].values())
    assert plan["peak_bytes"] > 4 * plan["parameters"] > 0
    assert list(tmp_path.iterdir()) == []


def test_dry_run_has_the_layer_in_the_middle_when_auto(llama: Path, out: Path) -> None:
    sizes = [
        json.loads(run(llama, "--out", out, "--dry-run", "--json", *layer).stdout)["files"]["prefix.onnx"]
        for layer in ([], ["--layer", "auto"], ["--layer", "1"], ["--layer", "2"])
    ]
    assert sizes[0] == sizes[1] == sizes[2] < sizes[3]


# Refusals


@pytest.mark.parametrize("layer", ["x", "-1", "1.5", "", "3", "99"])
def test_layer_is_refused_in_one_line_when_it_is_none_of_the_model(layer: str, llama: Path, out: Path) -> None:
    assert_refused(run(llama, "--out", out, "--dry-run", f"--layer={layer}"), "--layer")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "w8", "w4"])
def test_target_is_refused_in_one_line_when_the_npu_does_not_take_the_precision(
    precision: str, llama: Path, out: Path
) -> None:
    result = run(llama, "--out", out, "--dry-run", "--target", "qnn", "--precision", precision)
    assert_refused(result, "use --precision w8a16")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--slots", "0"),
        ("--slots", "-3"),
        ("--lens-rows", "0"),
        ("--lens-rows", "-1"),
        ("--samples", "0"),
        ("--samples", "-2"),
        ("--dynamic-multiplier", "0"),
        ("--dynamic-multiplier", "-1"),
        ("--dynamic-multiplier", "nan"),
        ("--dynamic-multiplier", "inf"),
        *[
            ("--key-statistics-mb", value) for value in ("0", "-1", "nan", "inf", "0.0009")
        ],  # the last holds no direction
        ("--block", "33"),
        ("--block", "64"),  # of a precision without blocks
        ("--nll-budget", "0"),
        ("--nll-budget", "0.1"),  # of a precision whose activations have no choice
    ],
)
def test_number_is_refused_in_one_line_when_out_of_range(option: str, value: str, llama: Path, out: Path) -> None:
    assert_refused(run(llama, "--out", out, "--dry-run", option, value), option)


@pytest.mark.parametrize("precision", ["fp32", "w8", "w4", "fp16"])
@pytest.mark.parametrize("ranges", [method.value for method in RangeMethod])
def test_ranges_are_refused_in_one_line_when_activations_are_not_static(
    ranges: str, precision: str, llama: Path, out: Path
) -> None:
    result = run(llama, "--out", out, "--dry-run", "--ranges", ranges, "--precision", precision)
    assert_refused(result, "use --precision w8a16, or leave --ranges out")


@pytest.mark.parametrize(
    "option",
    [["--precision", "w3"], ["--target", "gpu"], ["--ranges", "entropy"], ["--slots", "x"], ["--unknown"]],
)
def test_option_is_refused_when_click_does_not_know_it(option: list[str], llama: Path, out: Path) -> None:
    result = run(llama, "--out", out, "--dry-run", *option)
    assert result.exit_code == 2
    assert option[0] in result.stderr


def test_export_is_refused_when_out_is_missing(llama: Path) -> None:
    result = run(llama)
    assert result.exit_code == 2
    assert "--out" in result.stderr


@pytest.mark.parametrize("dry", [["--dry-run"], []], ids=["dry", "real"])
@pytest.mark.parametrize("model", ["nonsense", "/no/such/model"])
def test_model_is_refused_in_one_line_when_missing(model: str, dry: list[str], out: Path, tmp_path: Path) -> None:
    assert_refused(run(model, "--out", out, *dry), f"{model} is neither")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no text"),
        (b" \n\t\n", "no text"),
        (b"caf\xe9", "not UTF-8 (byte 3)"),
        (b"\x89PNG\r\n\x1a\n", "not UTF-8 (byte 0)"),
        (b"ELF\0\0\0", "binary"),
        (None, "cannot be read"),
    ],
    ids=["empty", "blank", "latin-1", "image", "binary", "missing"],
)
def test_calibration_text_is_refused_in_one_line_when_it_is_no_text(
    content: bytes | None, reason: str, llama: Path, out: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text"
    if content is not None:
        text.write_bytes(content)
    assert_refused(run(llama, "--out", out, "--calibration-text", text), reason)
    assert [path.name for path in tmp_path.iterdir()] == ([] if content is None else ["text"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "is not a file"),
        (b"{", "is not JSON"),
        (b"[]", "holds no list of records"),
        (b'[{"a": 1}]', "has no field that tells its format"),
        (b'[{"case_id": 1, "prompt": "Anna is"}]', "has no 'subject'"),
    ],
    ids=["missing", "half", "empty", "odd", "incomplete"],
)
def test_facts_are_refused_in_one_line_when_they_are_no_records(
    content: bytes | None, reason: str, llama: Path, out: Path, tmp_path: Path
) -> None:
    facts = tmp_path / "facts.json"
    if content is not None:
        facts.write_bytes(content)
    assert_refused(run(llama, "--out", out, "--facts", facts), reason)
    assert [path.name for path in tmp_path.iterdir()] == ([] if content is None else ["facts.json"])


@pytest.mark.parametrize("damage", ["truncated", "zero", "nan"])
def test_checkpoint_is_refused_in_one_line_and_nothing_is_left_when_damaged(
    damage: str, llama: Path, out: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(llama, tmp_path / "model"))
    weights = model / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    else:
        tensors = load_file(weights)
        tensors["model.layers.3.mlp.up_proj.weight"] *= 0 if damage == "zero" else np.nan
        save_file(tensors, weights, metadata={"format": "pt"})
    message = {"truncated": "check the checkpoint", "zero": "up_proj.weight of ", "nan": "has NaN or infinity"}
    assert_refused(run(model, "--out", out, "--json"), message[damage])  # without bars
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_existing_bundle_is_refused_in_one_line_when_not_forced(llama: Path, bundle_path: Path) -> None:
    assert_refused(run(llama, "--out", bundle_path), "--force")


def test_export_says_so_when_interrupted(llama: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "export_bundle", interrupt)
    result = run(llama, "--out", out)
    assert result.exit_code == 130
    assert (result.stdout, result.stderr) == ("", "stopped: nothing was committed\n")


def test_bug_keeps_its_traceback_when_it_is_no_error_of_ours(
    llama: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(pipeline, "export_bundle", fail)
    assert isinstance(run(llama, "--out", out).exception, ZeroDivisionError)


# Exports


def test_json_is_a_report_when_a_model_is_really_exported(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a relative place, as users give it
    result = run(llama, "--out", "bundle", "--precision", "fp32", *QUICK, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert "%|" not in result.stderr  # no bars: nobody looks
    manifest = read_manifest(tmp_path / "bundle")
    stated = {"edit_layer": manifest.edit_layer, "checks": manifest.checks, "statistics": manifest.statistics}
    assert report == {"bundle": "bundle", "notes": [], "contexts": {}, **stated}
    choice = manifest.statistics["layer"]  # no layer was asked for
    assert choice["chosen"] == manifest.edit_layer
    assert [each["layer"] for each in choice["candidates"]] == [1, 2]
    assert 0 < report["checks"]["fp32"]["max_abs_logit_difference"] < 1e-3  # the exporter's own limit
    assert (manifest.precision, manifest.target, manifest.slots) == ("fp32", "cpu", 3)
    assert list(tmp_path.iterdir()) == [tmp_path / "bundle"]


def test_lines_name_place_and_checks_when_exported(
    llama: Path, out: Path, tmp_path: Path, written_graphs: None
) -> None:
    (tmp_path / "text").write_text("The cat sat on the mat.\nIt rained.\n")
    result = run(llama, "--out", out, "--layer", 1, *QUICK, "--calibration-text", tmp_path / "text")
    assert result.exit_code == 0, result.output
    wrote, exact, keys, lens, quantised, *ranges = result.stdout.splitlines()
    assert wrote == f"wrote {out}: {llama}, edit layer 1 of 4, w8a16"
    assert exact.startswith("  FP32 graphs against the source model: largest logit difference ")
    assert re.fullmatch(r"  key statistics: 0\.0 MB, 127 directions of \d+ keys in \d+ s", keys)
    losses = r"\d+\.\d\d( -> \d+\.\d\d){3}"  # without delta, at the start, and after two steps
    stated = rf"NLL of other facts {losses}, divergence where else their subjects are asked about {losses}"
    assert re.fullmatch(rf"  lens: \d+\.\d MiB, 24 facts in \d+ s; at no delta, start and steps: {stated}", lens)
    assert quantised.startswith("  w8a16 graphs: cosine 0.99")
    assert ranges[0] == "  activation ranges: minmax, from 2 lines"  # as many as there are
    assert [line.split()[0] for line in ranges[1:]] == ["graph", "prefix", "suffix", "head"]
    assert [line for line in result.stderr.splitlines() if line.startswith("note: key statistics: ")]


@pytest.mark.parametrize("ranges", ["percentile", "mse"])
def test_graphs_pass_their_check_when_ranges_are_chosen_another_way(
    ranges: str, llama: Path, out: Path, written_graphs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantise_stage, "quantise_static", quantise_static)  # not the session's graphs
    result = run(llama, "--out", out, "--layer", 1, *QUICK, "--ranges", ranges, "--samples", 8, "--json")
    assert result.exit_code == 0, result.output
    stated = json.loads(result.stdout)["statistics"]["ranges"]
    assert (stated["method"], stated["samples"]) == (ranges, 8)
    clipped = [graph["clipped"] for graph in stated["graphs"].values()]
    assert all(0 < share < 1e-3 for share in clipped) if ranges == "percentile" else not any(clipped)


def test_other_ranges_are_the_remedy_when_clipping_loses_the_model(
    llama: Path, out: Path, written_graphs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Half of the random model's tensors have values above 4, and no outliers that could be spared.
    monkeypatch.setattr(quantise_stage, "quantise_static", quantise_static)
    result = run(llama, "--out", out, "--layer", 1, *QUICK, "--ranges", "clip", "--samples", 8, "--json")
    assert_refused(result, "use --ranges minmax")


def test_line_of_the_choice_has_layer_and_scores_when_several_were_tried() -> None:
    candidates = [{"layer": 10, "score": 0.9167}, {"layer": 14, "score": 0.75}]
    line = _choice_line({"chosen": 10, "facts": 8, "seconds": 41.6}, candidates)
    assert line == "  edit layer: 10, by 8 facts in 42 s; scores 10: 0.92, 14: 0.75"


def test_table_of_ranges_has_a_line_a_graph_when_ranges_were_chosen() -> None:
    head = {"tensors": 2, "median_bound": 20.5, "largest_bound": 37.25, "clipped": 0.00125}
    assert list(_range_lines({"method": "clip", "samples": 8, "graphs": {"head": head}})) == [
        "  activation ranges: clip, from 8 lines",
        "    graph     tensors   median bound  largest bound     clipped",
        "    head            2          20.50          37.25     0.1250%",
    ]


def test_missing_libraries_are_named_in_one_line_when_only_the_runtime_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobiedit.export.libraries._LIBRARIES", ("torch", "no_such_library"))
    result = CliRunner().invoke(main, ["smollm2-135m", "--out", str(tmp_path / "bundle")])
    assert result.exit_code == 2
    assert result.stderr == "error: exporting needs no_such_library: install mobiedit with its extra [export]\n"
