"""Where a graph takes its weights from: as onnx's own reader sees it, and refused when it leaves the bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from mobiedit.runtime.errors import BundleError
from mobiedit.runtime.onnx_external_data import FIELDS, external_locations, require_listed_data

GRAPHS = ("prefix", "edit", "suffix", "head")
LISTED = {f"{graph}.onnx{data}" for graph in GRAPHS for data in ("", ".data")}


def tensor(location: str) -> onnx.TensorProto:
    """A tensor in a file, with other entries around the one that counts."""
    proto = onnx.TensorProto(name="w", data_type=1, dims=[2], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("offset", "0"), ("location", location), ("length", "8")):
        proto.external_data.add(key=key, value=value)
    return proto


# Every place in a model that holds a tensor, by the call that puts one there.
PLACES: dict[str, Callable[[onnx.ModelProto, str], Any]] = {
    "initializer": lambda model, name: model.graph.initializer.append(tensor(name)),
    "sparse values": lambda model, name: model.graph.sparse_initializer.add().values.CopyFrom(tensor(name)),
    "sparse indices": lambda model, name: model.graph.sparse_initializer.add().indices.CopyFrom(tensor(name)),
    "attribute": lambda model, name: model.graph.node.add().attribute.add().t.CopyFrom(tensor(name)),
    "attribute list": lambda model, name: model.graph.node.add().attribute.add().tensors.append(tensor(name)),
    "sparse attribute": lambda model, name: (
        model.graph.node.add().attribute.add().sparse_tensor.values.CopyFrom(tensor(name))
    ),
    "branch": lambda model, name: model.graph.node.add().attribute.add().g.initializer.append(tensor(name)),
    "branches": lambda model, name: (
        model.graph.node.add().attribute.add().graphs.add().initializer.append(tensor(name))
    ),
    "function": lambda model, name: model.functions.add().node.add().attribute.add().t.CopyFrom(tensor(name)),
    "default": lambda model, name: model.functions.add().attribute_proto.add().t.CopyFrom(tensor(name)),
    "training": lambda model, name: model.training_info.add().algorithm.initializer.append(tensor(name)),
}
NAMES = st.text(max_size=20)


def messages(message: Message) -> Iterator[Message]:
    """Yield a message and all in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if isinstance(value, list) or hasattr(value, "append") else [value]:
                yield from messages(inner)


def read_by_onnx(model: onnx.ModelProto) -> set[str]:
    entries = [m for m in messages(model) if m.DESCRIPTOR.name == "TensorProto"]
    pairs = [(text(e.key), text(e.value)) for each in entries for e in each.external_data]  # type: ignore[attr-defined]
    return {value for key, value in pairs if key == "location"}


def text(value: str | bytes) -> str:
    """Protobuf gives a text that is not UTF-8 as bytes."""
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def test_fields_are_those_of_onnx_when_they_lead_to_a_tensor() -> None:
    kinds = {name: getattr(onnx, name).DESCRIPTOR for name in FIELDS if hasattr(onnx, name)}
    assert kinds.keys() == FIELDS.keys()
    leading = set(FIELDS) | {"StringStringEntryProto"}
    for name, descriptor in kinds.items():
        found = {f.number: f.message_type.name for f in descriptor.fields if f.message_type is not None}
        wanted = {number: kind for number, kind in found.items() if kind in leading}
        for other in ("metadata_props", "initialization_binding", "update_binding", "quantization_annotation"):
            if other in descriptor.fields_by_name:  # texts about the model: no file is opened for them
                wanted.pop(descriptor.fields_by_name[other].number, None)
        assert FIELDS[name] == wanted, name


@given(st.lists(st.tuples(st.sampled_from(sorted(PLACES)), NAMES), max_size=6), st.binary(max_size=40))
@settings(deadline=None)
def test_locations_are_those_written_when_tensors_are_anywhere(places: list[tuple[str, str]], raw: bytes) -> None:
    model = onnx.ModelProto(ir_version=8, producer_name="location", doc_string="../outside")
    model.graph.initializer.add(name="inline", data_type=1, dims=[2], raw_data=raw, float_data=[1.0, 2.0])
    model.graph.node.append(helper.make_node("Add", ["a", "b"], ["c"], axis=3, alpha=0.5, text="location"))
    for place, name in places:
        PLACES[place](model, name)
    assert external_locations(model.SerializeToString()) == {name for _, name in places} == read_by_onnx(model)


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_no_location_is_missed_when_bytes_are_damaged_but_onnx_reads_them(data: st.DataObject) -> None:
    model = onnx.ModelProto(ir_version=8)
    for place in data.draw(st.lists(st.sampled_from(sorted(PLACES)), min_size=1, max_size=3)):
        PLACES[place](model, "name")
    content = bytearray(model.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        seen = read_by_onnx(onnx.ModelProto.FromString(bytes(content)))
    except DecodeError:
        seen = set()
    with suppress(ValueError):  # refused: nothing is opened
        assert seen <= external_locations(bytes(content))


@given(st.binary(max_size=200))
def test_bytes_are_read_or_malformed_when_they_are_anything(content: bytes) -> None:
    with suppress(ValueError):
        assert all(isinstance(name, str) for name in external_locations(content))


def test_each_value_counts_when_an_entry_has_several() -> None:
    entry = b"\x0a\x08location\x12\x01a\x12\x01b"
    tensor_bytes = b"\x6a" + bytes([len(entry)]) + entry
    graph = b"\x2a" + bytes([len(tensor_bytes)]) + tensor_bytes
    assert external_locations(b"\x3a" + bytes([len(graph)]) + graph) == {"a", "b"}


def test_locations_are_all_read_when_graphs_are_nested_deeply() -> None:
    model = onnx.ModelProto()
    graph = model.graph
    for _ in range(30):
        graph = graph.node.add().attribute.add().g
    graph.initializer.append(tensor("deep"))
    assert external_locations(model.SerializeToString()) == {"deep"}


# Bundles


def point_to(path: Path, location: str) -> None:
    """Let a graph take its weights from another file."""
    model = onnx.load(path, load_external_data=False)
    for each in model.graph.initializer:
        for entry in each.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())


def test_bundle_is_taken_when_it_is_as_exported(fp32_bundle: Path, w8a16_bundle: Path) -> None:
    for bundle in (fp32_bundle, w8a16_bundle):
        require_listed_data(bundle, LISTED)
        assert external_locations((bundle / "suffix.onnx").read_bytes()) == {"suffix.onnx.data"}


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(
    "location",
    [
        "/etc/hostname",
        "../outside",
        "..\\outside",
        "C:\\outside",
        "./prefix.onnx.data",
        "a/b",
        "",
        "*/_ORT_MEM_ADDR_/*",
    ],
)
def test_bundle_is_refused_in_one_line_when_weights_leave_it(graph: str, location: str, bundle_path: Path) -> None:
    point_to(bundle_path / f"{graph}.onnx", location)
    with pytest.raises(BundleError, match=r"\Afile name [^\n]+ leaves the bundle [^\n]+\Z"):
        require_listed_data(bundle_path, LISTED)


def test_bundle_is_refused_in_one_line_when_weights_are_in_a_file_that_is_not_listed(bundle_path: Path) -> None:
    (bundle_path / "stray").symlink_to(bundle_path.parent)
    point_to(bundle_path / "head.onnx", "stray")
    with pytest.raises(BundleError, match=r"\Ahead\.onnx takes weights from 'stray', not in the bundle; [^\n]+\Z"):
        require_listed_data(bundle_path, LISTED)


def test_bundle_is_refused_in_one_line_when_a_graph_is_a_link(bundle_path: Path) -> None:
    (bundle_path / "edit.onnx").rename(bundle_path.parent / "edit.onnx")
    (bundle_path / "edit.onnx").symlink_to(bundle_path.parent / "edit.onnx")
    with pytest.raises(BundleError, match=r"\A[^\n]+edit\.onnx is a link[^\n]+\Z"):
        require_listed_data(bundle_path, LISTED)


@pytest.mark.parametrize("content", [b"not a graph", b"\xff" * 100, b"\x3a\x7f", b"\x0b\x0c", b"\x08"])
def test_bundle_is_refused_in_one_line_when_a_graph_is_none(content: bytes, bundle_path: Path) -> None:
    (bundle_path / "prefix.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"\Aprefix\.onnx cannot be loaded \(no ONNX file\): [^\n]+\Z"):
        require_listed_data(bundle_path, LISTED)
