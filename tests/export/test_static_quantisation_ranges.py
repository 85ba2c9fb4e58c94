"""The activation ranges of w8a16 graphs: those of ONNX Runtime's own calibration, or the chosen ones."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config
from transformers import PreTrainedTokenizerFast

from mobiedit.calibration.activation_ranges import RangeConfig, RangeMethod, TensorRange
from mobiedit.calibration.graph_inputs import Feeds, RecordedInputs, record_graph_inputs
from mobiedit.calibration.text import default_text
from mobiedit.export.static_quantisation import _overrides, quantise_static
from mobiedit.runtime import open_bundle
from mobiedit.runtime.bundle_parts import cpu_graphs, load_parts
from mobiedit.runtime.configuration import ExecutionConfig
from mobiedit.runtime.errors import NumericsError

GRAPHS = ("prefix", "suffix", "head")


@pytest.fixture(scope="module")
def recorded(
    fp32_bundle: Path, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> RecordedInputs:
    manifest = open_bundle(fp32_bundle, verify=False).manifest
    shape, layer, mask = manifest.shape, manifest.edit_layer, manifest.mask_value
    parts = load_parts(fp32_bundle, shape, layer, mask, cpu_graphs(fp32_bundle, ExecutionConfig(), fold_weights=False))
    return record_graph_inputs(
        parts, [tokenizer(line).input_ids for line in default_text()[:4]], 3, tmp_path_factory.mktemp("feeds")
    )


@pytest.fixture
def source(fp32_bundle: Path, tmp_path: Path) -> Path:
    """A folder with the FP32 graphs."""
    folder = tmp_path / "source"
    folder.mkdir()
    for graph in GRAPHS:
        for path in fp32_bundle.glob(f"{graph}.onnx*"):
            shutil.copy(path, folder)
    return folder


def quantised(source: Path, graph: str, feeds: Any, method: RangeMethod) -> tuple[Path, dict[str, TensorRange]]:
    folder = source.parent / method
    folder.mkdir(exist_ok=True)
    return folder, quantise_static(source / f"{graph}.onnx", folder / f"{graph}.onnx", feeds, RangeConfig(method))


def constants(graph: Path) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(graph).graph.initializer}


class Reader(CalibrationDataReader):
    def __init__(self, feeds: Sequence[Feeds]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> Feeds | None:
        return next(self.feeds, None)


@pytest.mark.parametrize("graph", GRAPHS)
def test_graph_is_that_of_onnx_runtimes_calibration_when_min_max(
    graph: str, source: Path, recorded: RecordedInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    feeds: list[Feeds] = getattr(recorded, graph)
    folder, _ = quantised(source, graph, feeds, RangeMethod.MIN_MAX)
    path, reference = source / f"{graph}.onnx", source.parent / "reference"
    reference.mkdir()
    monkeypatch.chdir(reference)  # where onnx looks for data files
    types = {"activation_type": QuantType.QUInt16, "weight_type": QuantType.QInt8}
    config = get_qnn_qdq_config(path, Reader(feeds), init_overrides=_overrides(path), **types)
    config.use_external_data_format = True
    quantize(path, reference / path.name, config)
    found, expected = constants(folder / path.name), constants(reference / path.name)
    assert found.keys() == expected.keys()
    assert sum(name.endswith("_scale") for name in found) >= 3
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert (folder / path.name).read_bytes() == (reference / path.name).read_bytes()


@pytest.mark.parametrize("method", RangeMethod)
@pytest.mark.parametrize("graph", ["suffix", "head"])
def test_written_scales_are_those_of_the_ranges_when_quantised(
    graph: str, method: RangeMethod, source: Path, recorded: RecordedInputs
) -> None:
    folder, ranges = quantised(source, graph, getattr(recorded, graph), method)
    written = constants(folder / f"{graph}.onnx")
    checked = 0
    for name, chosen in ranges.items():
        if (narrow := written.get(f"{name}_scale_convert")) is not None:
            assert narrow == pytest.approx(2 * chosen.bound / 65534, rel=1e-4), name
            checked += 1
        if (scale := written.get(f"{name}_scale")) is None:
            continue  # the output of an operator that only moves values has its input's
        levels = 65536 if scale == 1 / 65536 else 65535  # a sigmoid's, as the NPU wants it
        assert scale == pytest.approx((chosen.high - chosen.low) / levels, rel=1e-5), name
        assert written[f"{name}_zero_point"] == pytest.approx(-chosen.low / scale, abs=0.51), name
    assert checked == {"suffix": 4, "head": 0}[graph]  # the second operands of two layers' attention


def test_feeds_are_taken_one_by_one_when_they_come_from_a_generator(source: Path, recorded: RecordedInputs) -> None:
    def stream() -> Iterator[Feeds]:
        yield from recorded.suffix

    _, streamed = quantised(source, "suffix", stream(), RangeMethod.CLIP)
    shutil.rmtree(source.parent / RangeMethod.CLIP)
    assert streamed == quantised(source, "suffix", recorded.suffix[::-1], RangeMethod.CLIP)[1]  # in any order


def test_source_folder_is_left_as_it_was_when_quantised(source: Path, recorded: RecordedInputs, contents: Any) -> None:
    before = contents(source)
    quantised(source, "head", recorded.head, RangeMethod.MSE)
    assert contents(source) == before


def test_clip_narrows_some_ranges_and_widens_none_when_min_max_has_outliers(
    source: Path, recorded: RecordedInputs
) -> None:
    whole, clipped = (
        quantised(source, "suffix", recorded.suffix, method)[1] for method in (RangeMethod.MIN_MAX, RangeMethod.CLIP)
    )
    assert whole.keys() == clipped.keys()
    assert all(whole[name].low <= each.low and each.high <= whole[name].high for name, each in clipped.items())
    assert any(each.bound < whole[name].bound for name, each in clipped.items())
    assert clipped["mask"] == whole["mask"] == TensorRange(-100.0, 0.0, whole["mask"].values)


@pytest.mark.parametrize("method", RangeMethod)
def test_logits_are_never_clipped_when_quantised(method: RangeMethod, source: Path, recorded: RecordedInputs) -> None:
    chosen = quantised(source, "head", recorded.head, method)[1]["logits"]
    session = ort.InferenceSession(str(source / "head.onnx"), providers=["CPUExecutionProvider"])
    logits = np.concatenate([session.run(None, feed)[0] for feed in recorded.head])
    assert (chosen.low, chosen.high) == pytest.approx((logits.min(), logits.max()), rel=1e-5)
    assert chosen.clipped == 0


def test_tensor_is_named_when_an_activation_is_not_finite(source: Path) -> None:
    with pytest.raises(NumericsError, match="tensor 'hidden' has NaN or infinity"):
        quantised(source, "head", [{"hidden": np.full((1, 64), np.inf, np.float32)}], RangeMethod.MIN_MAX)
