"""A weight of the source model as an ONNX tensor that is widened and transposed while it is written."""

from __future__ import annotations

from typing import IO

import onnx_ir
from torch import Tensor

_PIECE = 2**24  # numbers that are in FP32 at a time: 64 MiB


class StoredWeight(onnx_ir.LazyTensor):
    """The transpose of a linear layer's weight [N, D]: a tensor [D, N], float32.

    Parameters
    ----------
    weight
        In whatever precision it has.
    """

    def __init__(self, weight: Tensor, name: str) -> None:
        shape = onnx_ir.Shape(reversed(weight.shape))
        super().__init__(self._whole, onnx_ir.DataType.FLOAT, shape, name=name)
        self._weight = weight

    def tofile(self, file: IO[bytes]) -> None:
        """Write its numbers, little-endian, some rows at a time."""
        for columns in self._weight.split(max(1, _PIECE // self._weight.shape[0]), dim=1):
            file.write(columns.T.float().contiguous().numpy().astype("<f4", copy=False).data)

    def forget(self) -> None:
        """Let go of the weight, so that its memory is free though the tensor is not."""
        self._weight = self._weight.new_zeros(0, 0)

    def _whole(self) -> onnx_ir.TensorProtocol:
        return onnx_ir.Tensor(self._weight.T.float().contiguous().numpy(), name=self.name)
