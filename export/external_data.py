"""Write the weights of an ONNX graph beside it, one after another."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import onnx
from onnx.external_data_helper import load_external_data_for_tensor, set_external_data

Message = TypeVar("Message", onnx.TensorProto, onnx.NodeProto)

_SMALLEST = 1024  # bytes: below this a tensor stays in the graph, as onnx leaves it
_ALIGNMENT, _ALIGNED = 4096, 2**20  # a tensor of a megabyte or more starts on a page


class ExternalDataWriter:
    """Takes the tensors of a graph and writes their numbers to ``<graph>.data``.

    Parameters
    ----------
    graph
        The graph's file, which is written by somebody else.
    """

    def __init__(self, graph: Path) -> None:
        self._location = f"{graph.name}.data"
        self._file = (graph.parent / self._location).open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()

    def take(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """Return a copy of the tensor with its numbers in the file, or with them where they are few.

        A copy, since a message that is part of another keeps all of that in memory.
        """
        if len(tensor.raw_data) < _SMALLEST:
            return copied(tensor)
        alignment = _ALIGNMENT if len(tensor.raw_data) >= _ALIGNED else 1
        offset = -(-self._file.tell() // alignment) * alignment
        self._file.seek(offset)
        self._file.write(tensor.raw_data)
        moved = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=b"")
        set_external_data(moved, self._location, offset, len(tensor.raw_data))
        moved.ClearField("raw_data")
        moved.data_location = onnx.TensorProto.EXTERNAL
        return moved


def loaded(tensor: onnx.TensorProto, folder: Path) -> onnx.TensorProto:
    """Return a copy of a tensor that has its numbers, wherever they lie."""
    copy = copied(tensor)
    if copy.data_location == onnx.TensorProto.EXTERNAL:
        load_external_data_for_tensor(copy, str(folder))
        copy.data_location = onnx.TensorProto.DEFAULT
        del copy.external_data[:]
    return copy


def copied(message: Message) -> Message:
    """Return a message of its own, whatever the given one is a part of."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
