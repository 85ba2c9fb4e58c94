"""Which files an ONNX graph takes its weights from, read from the file itself before ONNX Runtime opens any of them.

An ONNX file is a protobuf message; a weight outside it is a `TensorProto` with entries of ``external_data``, one of
which names the file (https://onnx.ai/onnx/repo-docs/ExternalData.html). Only the way to these entries is walked
(https://protobuf.dev/programming-guides/encoding): whatever else a message holds is skipped by its length.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from reprlib import repr as short

from .bundle_layout import GRAPHS, graph_file
from .errors import BundleError
from .files import EXPORT_AGAIN, check_name, safe_child, storage_errors

# Fields of onnx.proto that lead to a tensor: message -> field number -> message.
FIELDS = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
}
_KEY, _VALUE = 1, 2  # fields of a StringStringEntryProto
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5  # wire types; groups are of an older protobuf than ONNX
_NO_MESSAGE = "the bytes are no protobuf message"


def require_listed_data(folder: Path, listed: Collection[str]) -> None:
    """Refuse the bundle in ``folder`` when a graph takes weights from a file that its manifest does not list.

    Raises
    ------
    BundleError
        When such a name is there, leads out of the bundle, or a graph is missing, a link or no ONNX file.
    StorageError
        When a graph may not be read.
    """
    for graph in GRAPHS:
        path = safe_child(folder, graph_file(graph))
        with storage_errors(f"read {path}"):
            content = path.read_bytes()
        try:
            locations = external_locations(content)
        except ValueError as error:
            raise BundleError(f"{path.name} cannot be loaded (no ONNX file): {EXPORT_AGAIN}") from error
        for location in sorted(locations):
            if check_name(location) not in listed:
                raise BundleError(
                    f"{path.name} takes weights from {short(location)}, not in the bundle; {EXPORT_AGAIN}"
                )


def external_locations(model: bytes) -> set[str]:
    """Return the names of the files that the tensors of a serialised `ModelProto` are in, as it states them.

    Raises
    ------
    ValueError
        When the bytes are no message.
    """
    return {
        name for kind, message in messages(model) if kind == "StringStringEntryProto" for name in _location(message)
    }


def messages(model: bytes) -> Iterator[tuple[str, memoryview]]:
    """Yield kind and content of each message on the way to a tensor of a serialised `ModelProto`, itself the first.

    Raises
    ------
    ValueError
        When the bytes are no message.
    """
    waiting = [("ModelProto", memoryview(model))]
    while waiting:  # not recursive: a nesting of any depth is read
        kind, message = waiting.pop()
        yield kind, message
        inner = FIELDS.get(kind, {})
        waiting += [(inner[number], content) for number, content in contents(message) if number in inner]


def _location(entry: memoryview) -> set[str]:
    """Return what an entry states under the key ``location``, each value of it should there be several."""
    fields = [(number, str(content, "utf-8", "replace")) for number, content in contents(entry)]
    if (_KEY, "location") not in fields:
        return set()
    return {text for number, text in fields if number == _VALUE} or {""}


def contents(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield number and content of each field with a length: messages, texts, bytes and packed numbers."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if number == 0 or tag >= 2**32:  # protobuf itself would cut the tag to 32 bits
            raise ValueError(_NO_MESSAGE)
        if wire_type == _VARINT:
            _, position = _varint(message, position)
            continue
        if wire_type == _LENGTH:
            size, position = _varint(message, position)
            yield number, message[position : position + size]
        elif wire_type in (_EIGHT_BYTES, _FOUR_BYTES):
            size = 8 if wire_type == _EIGHT_BYTES else 4
        else:
            raise ValueError(_NO_MESSAGE)
        position += size
        if position > len(message):
            raise ValueError(_NO_MESSAGE)


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return the number that begins at ``position``, seven bits a byte from the lowest on, and where it ends."""
    number = 0
    for index, byte in enumerate(message[position : position + 10]):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number, position + index + 1
    raise ValueError(_NO_MESSAGE)
