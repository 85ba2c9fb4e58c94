"""What a context binary and its wrapper state, read from bytes alone."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from mobiedit.runtime.context_binary import BinaryTarget, read_target, referenced_files, require_target
from mobiedit.runtime.errors import BundleError

FILLING = st.binary(max_size=5000)
BUILD, TARGET = b"v2.51.0.260929181845", b"soc_type=SM8650;arch=75;"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(before=FILLING, between=FILLING, behind=FILLING)
def test_target_is_read_when_other_bytes_are_around_it(
    before: bytes, between: bytes, behind: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"".join((before, BUILD, b"\0", between, TARGET, behind)))
    assert read_target(path) == BinaryTarget("SM8650", 75, "2.51.0.260929181845")


@pytest.mark.parametrize("content", [b"", b"\0" * 9, BUILD, TARGET, BUILD[:7] + TARGET, BUILD + TARGET[:-1]])
def test_file_is_refused_in_one_line_when_it_states_no_target(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(BundleError, match=r"\Aa\.bin is no context binary, it states no SoC and no version; [^\n]+\Z"):
        read_target(tmp_path / "a.bin")


@pytest.mark.parametrize(
    "other", [("SM8750", 75, "2.51.0.260929181845"), ("SM8650", 79, "2.51.0.260929181845"), ("SM8650", 75, "2.52.0.1")]
)
def test_binary_is_refused_when_any_part_of_its_target_differs(other: tuple[str, int, str], tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(BUILD + TARGET)
    require_target(tmp_path / "a.bin", BinaryTarget("SM8650", 75, "2.51.0.260929181845"))
    with pytest.raises(BundleError, match=r"\Acontext binary a\.bin is for SM8650, v75, QAIRT 2\.51\.0\.\d+ instead"):
        require_target(tmp_path / "a.bin", BinaryTarget(*other))


def wrapper(*binaries: str, weights: str | None = None) -> bytes:
    """Return a wrapper with a node for each binary, the last of them inside a branch."""
    nodes = [
        helper.make_node("EPContext", ["x"], [f"y{i}"], domain="com.microsoft", ep_cache_context=name, embed_mode=0)
        for i, name in enumerate(binaries)
    ]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    inner = helper.make_graph(nodes[-1:], "inner", [], [out])
    nodes[-1:] = (
        [helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)] if len(nodes) > 1 else nodes
    )
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])], [out])
    if weights:
        tensor = graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[1])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=weights)
    return bytes(helper.make_model(graph).SerializeToString())


def test_every_file_is_found_that_a_wrapper_refers_to() -> None:
    assert referenced_files(wrapper("a.bin")) == {"a.bin"}
    assert referenced_files(wrapper("a.bin", "../b.bin")) == {"a.bin", "../b.bin"}
    assert referenced_files(wrapper("a.bin", weights="/etc/passwd")) == {"a.bin", "/etc/passwd"}


def test_nothing_is_found_when_a_graph_has_no_context() -> None:
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [], [])
    assert referenced_files(helper.make_model(graph).SerializeToString()) == set()


@settings(deadline=None)
@given(content=st.binary(max_size=300))
def test_no_other_error_is_raised_when_bytes_are_no_model(content: bytes) -> None:
    with suppress(ValueError):
        assert isinstance(referenced_files(content), set)
