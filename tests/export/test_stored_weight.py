"""Weights that are widened and transposed while they are written."""

from __future__ import annotations

import io
import weakref

import numpy as np
import onnx_ir
import pytest
import torch

from mobiedit.export import stored_weight
from mobiedit.export.stored_weight import StoredWeight


@pytest.mark.parametrize("piece", [2**24, 100, 1])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_are_those_of_the_transpose_when_written_in_pieces(
    piece: int, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_weight, "_PIECE", piece)
    weight = torch.randn(24, 10).to(precision)
    tensor, file = StoredWeight(weight, "w"), io.BytesIO()
    tensor.tofile(file)
    wanted = weight.float().numpy().T
    assert (tensor.name, tensor.dtype, tensor.shape) == ("w", onnx_ir.DataType.FLOAT, onnx_ir.Shape((10, 24)))
    np.testing.assert_array_equal(np.frombuffer(file.getvalue(), "<f4").reshape(10, 24), wanted)
    np.testing.assert_array_equal(np.asarray(tensor), wanted)
    assert file.getvalue() == tensor.tobytes()
    assert tensor.nbytes == len(file.getvalue())


def test_memory_of_a_weight_is_free_when_it_is_forgotten() -> None:
    weight = torch.randn(24, 10)
    alive = weakref.ref(weight)
    tensor = StoredWeight(weight, "w")
    tensor.forget()
    del weight
    assert alive() is None
    assert tensor.name == "w"
