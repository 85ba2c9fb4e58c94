"""The graphs with 8-bit activations: groups, switches, and what is 8 bits in which precision."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mobiedit.calibration.activation_ranges import RangeConfig, RangeMethod, TensorRange
from mobiedit.export.configuration import Precision
from mobiedit.export.fake_quantisation import SwitchedGraph
from mobiedit.export.matmul_groups import HEAD, ROLES, MatMulGroup, matmul_groups, operand_share
from mobiedit.export.npu_check import MIN_COSINE_AT_8_BITS, _random_feeds, compare_on_npu
from mobiedit.export.static_quantisation import observe_ranges, write_static
from mobiedit.runtime import EditConfig, ExecutionConfig, open_bundle
from mobiedit.runtime.configuration import GaussNewtonConfig
from mobiedit.runtime.errors import JournalError
from mobiedit.runtime.execution import Graph
from tests.small_exports import export_small

AXES = {"batch": 2, "tokens": 4, "past": 6, "total": 10, "rows": 4}
simulator = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="the simulator is in the x86-64 Linux wheel alone"
)


@pytest.fixture(scope="module")
def mixed_bundle(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rotated bundle with some activations at 8 bits; not to be changed."""
    return export_small(llama, tmp_path_factory.mktemp("mixed") / "bundle", Precision.MIXED, nll_budget=0.004)


@pytest.fixture(scope="module")
def w8a8_bundle(llama: Path, fp32_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with all MatMul activations at 8 bits, not rotated; not to be changed."""
    out = tmp_path_factory.mktemp("w8a8") / "bundle"
    return export_small(llama, out, Precision.W8A8, traced=fp32_bundle, rotate=False)


def operand_types(folder: Path, graph: str) -> dict[str, list[str]]:
    """Return, for each product's node, the types of its two operands and of its output."""
    model = onnx.load(folder / f"{graph}.onnx").graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.initializer}
    producers = {name: node for node in model.node for name in node.output}
    consumers = {name: node for node in model.node for name in node.input}
    found = {}
    for node in model.node:
        if node.op_type in ("MatMul", "Gemm"):
            points = [producers[name] for name in node.input[:2]] + [consumers[node.output[0]]]
            found[node.name] = [str(constants[point.input[2]].dtype) for point in points]
    return found


@pytest.mark.parametrize(("graph", "first", "count"), [("prefix", 0, 10), ("suffix", 2, 12), ("head", 0, 1)])
def test_groups_have_their_roles_when_read_from_the_graphs(
    graph: str, first: int, count: int, fp32_bundle: Path
) -> None:
    groups = matmul_groups(fp32_bundle / f"{graph}.onnx", first)
    assert len(groups) == count
    assert len({group.name for group in groups}) == count
    if graph == "head":
        assert [(group.role, group.layer, group.operands) for group in groups] == [(HEAD, None, 1)]
        return
    sizes = dict(zip(ROLES, (3, 2, 2, 1, 2, 1), strict=True))
    for index, group in enumerate(groups):
        assert group.role == ROLES[index % 6]
        assert group.layer == first + index // 6
        assert group.operands == sizes[group.role]
        assert bool(group.outputs) == ("attention_scores" != group.role != "attention_mix")


def test_share_counts_operands_when_groups_are_chosen() -> None:
    static = MatMulGroup("prefix", 0, ROLES[0], ("a", "b", "c"), ("x",), ("q", "k", "v"))
    product = MatMulGroup("prefix", 0, ROLES[1], ("d",), ("q", "k"), ())
    assert operand_share((static, product), (product,)) == 2 / 5


@pytest.fixture
def ranges(fp32_bundle: Path) -> tuple[dict[str, TensorRange], ...]:
    path = fp32_bundle / "suffix.onnx"
    feeds = _random_feeds(path)
    return observe_ranges(path, [feeds], ((RangeConfig(), None), (RangeConfig(RangeMethod.MSE, bits=8), None)))


def test_switched_graph_is_the_source_when_nothing_is_on_and_off_by_a_group_when_it_is(
    fp32_bundle: Path, ranges: tuple[dict[str, TensorRange], ...]
) -> None:
    path, on = fp32_bundle / "suffix.onnx", set[str]()
    feeds = _random_feeds(path)
    groups = matmul_groups(path, 2)
    switched = SwitchedGraph(path, groups, ranges[0], on)
    exact = Graph(path, ExecutionConfig()).run(feeds)["hidden_out"]
    np.testing.assert_allclose(switched.run(feeds)["hidden_out"], exact, atol=1e-5)  # other fusions
    errors = []
    for names in ([groups[0].name], [group.name for group in groups]):
        on.update(names)
        errors.append(np.abs(switched.run(feeds)["hidden_out"] - exact).max())
        on.clear()
    assert 1e-3 < errors[0] < errors[1] < 1.0


@pytest.mark.parametrize("index", [0, 3, 5])
def test_switched_graph_predicts_the_size_of_the_error_when_a_group_is_on(
    index: int, fp32_bundle: Path, ranges: tuple[dict[str, TensorRange], ...], tmp_path: Path
) -> None:
    path = fp32_bundle / "suffix.onnx"
    feeds, group = _random_feeds(path), matmul_groups(path, 2)[index]
    results = {}
    for name, narrow in (("wide", ()), ("narrow", (group,))):
        (tmp_path / name).mkdir()
        write_static(path, tmp_path / name / "suffix.onnx", ranges[0], narrow, ranges[1])
        results[name] = Graph(tmp_path / name / "suffix.onnx", ExecutionConfig()).run(feeds)["hidden_out"]
    exact = Graph(path, ExecutionConfig()).run(feeds)["hidden_out"]
    predicted = SwitchedGraph(path, [group], ranges[1], {group.name}).run(feeds)["hidden_out"]
    ratio = np.linalg.norm(results["narrow"] - results["wide"]) / np.linalg.norm(predicted - exact)
    # Rounded weights move values to other levels, so the errors differ one by one: their size was within a fifth here.
    assert 1 / 1.6 < ratio < 1.6


def test_every_product_has_8_bits_when_w8a8(w8a8_bundle: Path) -> None:
    for graph in ("prefix", "suffix", "head"):
        types = operand_types(w8a8_bundle, graph)
        assert types
        for left, right, output in types.values():
            assert left == "uint8"
            assert (right, output) in {("int8", "uint8"), ("uint8", "uint16")}
    activations = open_bundle(w8a8_bundle).manifest.statistics["activations"]
    assert activations["share"] == 1
    assert activations["operands"] == 26 + 8 * 2  # products with weights, and both operands of each layer's two


def test_chosen_products_alone_have_8_bits_when_mixed(mixed_bundle: Path, fp32_bundle: Path) -> None:
    evidence = open_bundle(mixed_bundle).manifest.statistics["activations"]
    chosen = set(evidence["eight_bits"])
    narrow = 0
    for graph, first in (("prefix", 0), ("suffix", 2), ("head", 0)):
        types = operand_types(mixed_bundle, graph)
        for group in matmul_groups(fp32_bundle / f"{graph}.onnx", first):
            for node in group.nodes:
                assert (types[node][0] == "uint8") == (group.name in chosen), group.name
            narrow += group.operands * (group.name in chosen)
    assert 0 < narrow == evidence["eight_bit_operands"] < evidence["operands"]
    assert max(evidence["joint"].values()) <= evidence["budget"]
    record = json.loads((mixed_bundle / "ranges.json").read_text())
    assert sum(map(len, record["eight_bits"].values())) >= len(chosen)


@simulator
@pytest.mark.parametrize("bundle", ["mixed_bundle", "w8a8_bundle"])
def test_graphs_run_on_the_simulator_as_a_whole_when_some_activations_have_8_bits(
    bundle: str, request: pytest.FixtureRequest
) -> None:
    cosines = compare_on_npu(request.getfixturevalue(bundle), min_cosine=MIN_COSINE_AT_8_BITS)
    assert min(cosines.values()) >= MIN_COSINE_AT_8_BITS


def test_edit_is_in_force_and_undone_when_the_bundle_is_rotated(mixed_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(shutil.copytree(mixed_bundle, tmp_path / "bundle"))
    before = bundle.log_probabilities("The book of Paris is")
    config = EditConfig(gauss_newton=GaussNewtonConfig(steps=6, directions=8), force=True)
    bundle.edit("The book of {} is", "Paris", "the", config=config)
    assert np.abs(bundle.log_probabilities("The book of Paris is") - before).max() > 0.1  # nats
    bundle.undo()
    np.testing.assert_array_equal(bundle.log_probabilities("The book of Paris is"), before)


def test_edit_of_another_basis_is_refused_when_the_bundle_is_rotated(
    mixed_bundle: Path, w8a16_bundle: Path, tmp_path: Path
) -> None:
    rotated = open_bundle(shutil.copytree(mixed_bundle, tmp_path / "rotated"))
    plain = open_bundle(shutil.copytree(w8a16_bundle, tmp_path / "plain"))
    assert "rotation" in rotated.manifest.statistics
    assert "rotation" not in plain.manifest.statistics
    assert rotated.manifest.edit_base != plain.manifest.edit_base
    config = EditConfig(gauss_newton=GaussNewtonConfig(steps=1, directions=8), force=True)
    plain.edit("The book of {} is", "Paris", "the", config=config)
    shutil.copy(tmp_path / "plain/edits/journal", tmp_path / "rotated/edits/journal")
    with pytest.raises(JournalError):
        rotated.ask("Paris", 1)
