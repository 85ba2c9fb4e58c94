"""Predicted sizes against written ones."""

from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from mobiedit.export.configuration import BLOCK, Precision
from mobiedit.export.plan import plan_export
from mobiedit.runtime.manifest import ModelShape, read_manifest

SMOLLM2 = ModelShape(
    n_layers=30,
    width=576,
    mlp_width=1536,
    n_heads=9,
    n_kv_heads=3,
    head_dim=64,
    vocabulary=49152,
    context=2048,
    tied_head=True,
)
SMOLLM2_W8A16 = {
    "prefix.onnx": 36298368,
    "edit.onnx": 10619136,
    "suffix.onnx": 67284864,
    "head.onnx": 28311552,
    "embedding.safetensors": 56623192,
    "key_statistics.safetensors": 4728028,
    "lens.safetensors": 7523000,
}
"""Bytes that an export of SmolLM2-135M wrote."""


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.W8A16])
def test_sizes_are_those_of_the_bundle_when_written(precision: Precision, request: pytest.FixtureRequest) -> None:
    bundle: Path = request.getfixturevalue(f"{precision}_bundle")
    manifest = read_manifest(bundle)
    plan = plan_export(manifest.shape, manifest.edit_layer, precision, BLOCK)
    for name, predicted in plan.files.items():
        # A tiny graph is mostly its nodes, a real one its weights: these are in the data file.
        weights = bundle / (f"{name}.data" if name.endswith(".onnx") else name)
        # Scales, norms and headers are not predicted; on matrices this small they weigh more than on real ones.
        assert weights.stat().st_size == pytest.approx(predicted, rel=0.25), name


def test_sizes_are_those_measured_when_model_is_smollm2() -> None:
    plan = plan_export(SMOLLM2, 10, Precision.W8A16, BLOCK)
    assert plan.files.keys() == SMOLLM2_W8A16.keys()
    for name, written in SMOLLM2_W8A16.items():
        assert plan.files[name] == pytest.approx(written, rel=0.05), name
    assert plan.total_bytes == pytest.approx(sum(SMOLLM2_W8A16.values()), rel=0.05)


@pytest.mark.parametrize(
    ("precision", "bits", "head_bits"),
    [
        (Precision.FP32, 32, 32),
        (Precision.FP16, 16, 16),
        (Precision.W8A16, 8, 8),
        (Precision.W8, 9, 9),  # a scale of 32 bits for each 32 weights: one bit more a weight
        (Precision.W4, 6, 9),  # a zero point as well; the head has 8 bits and no zero point
    ],
)
def test_weights_have_their_bits_when_precision_is(precision: Precision, bits: int, head_bits: int) -> None:
    files = plan_export(SMOLLM2, 10, precision, BLOCK).files
    assert files["head.onnx"] == 49152 * 576 * head_bits // 8
    layer = 2 * 576 * 64 * (9 + 3) + 3 * 576 * 1536
    assert files["suffix.onnx"] == 19 * layer * bits // 8


@pytest.mark.parametrize("precision", Precision)
def test_prediction_is_there_when_precision_is_any(precision: Precision) -> None:
    plan = plan_export(SMOLLM2, 10, precision, BLOCK)
    assert plan.peak_bytes > 4 * plan.parameters  # the source model alone is FP32


def test_edit_graph_stays_fp32_when_others_are_quantised() -> None:
    assert plan_export(SMOLLM2, 10, Precision.W8A16, BLOCK).files["edit.onnx"] == 4 * 3 * 576 * 1536


def test_parameters_are_the_models_when_head_is_tied(fp32_bundle: Path, source_model: nn.Module) -> None:
    counted = sum(parameter.numel() for parameter in source_model.parameters())
    # Norms (9 of 64) are not predicted.
    assert plan_export(read_manifest(fp32_bundle).shape, 1, Precision.FP32, BLOCK).parameters == counted - 9 * 64


def test_parameters_count_the_vocabulary_twice_when_head_is_not_tied() -> None:
    untied = replace(SMOLLM2, tied_head=False)
    tied_plan, untied_plan = (plan_export(shape, 10, Precision.FP32, BLOCK) for shape in (SMOLLM2, untied))
    assert untied_plan.parameters - tied_plan.parameters == 49152 * 576
    rows = 4 * 49152 * 576  # the device reads rows of both matrices
    assert untied_plan.files == {**tied_plan.files, "embedding.safetensors": 2 * rows}


def test_peak_memory_covers_source_and_session_when_model_is_large() -> None:
    large = replace(SMOLLM2, n_layers=300)
    plan = plan_export(large, 100, Precision.W8A16, BLOCK)
    assert plan.peak_bytes > 2 * 4 * plan.parameters  # the source model and its FP32 graphs are in memory together


def test_files_are_smaller_when_blocks_are_longer() -> None:
    small, large = (plan_export(SMOLLM2, 10, Precision.W4, block).files for block in (64, 32))
    assert small["suffix.onnx"] == pytest.approx(large["suffix.onnx"] * 5 / 6)
    assert small["head.onnx"] == pytest.approx(large["head.onnx"] * 8.5 / 9)  # of 8 bits, with a scale alone
    assert small["edit.onnx"] == large["edit.onnx"]


def test_peak_is_near_the_measured_one_when_a_3b_is_in_half_precision() -> None:
    qwen = ModelShape(36, 2048, 11008, 16, 2, 128, 151_936, 2048, tied_head=True)
    plan = plan_export(qwen, 12, Precision.W8, BLOCK, half=True)
    assert plan.parameters == pytest.approx(3.09e9, rel=0.01)
    assert plan.peak_bytes == pytest.approx(8.6e9, rel=0.1)  # docs/benchmarks.md
    assert plan.peak_bytes < 1.5 * 2 * plan.parameters


def test_statistics_are_within_their_budget_when_model_is_a_3b() -> None:
    qwen = ModelShape(36, 2048, 11008, 16, 2, 128, 151_936, 2048, tied_head=True)
    name = "key_statistics.safetensors"
    assert 31.9e6 < plan_export(qwen, 12, Precision.W8, BLOCK).files[name] <= 32e6
    assert 7.9e6 < plan_export(qwen, 12, Precision.W8, BLOCK, key_statistics=8_000_000).files[name] <= 8e6
