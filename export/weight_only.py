"""Weight-only 8-bit graphs for deployment on a CPU (``w8``)."""

from __future__ import annotations

from pathlib import Path

import onnx

from .third_party import contained

BLOCK = 32
_ACCURACY_LEVEL = 4  # int8 arithmetic: the level for which ONNX Runtime has fast 8-bit kernels


def quantise_weights(source: Path, target: Path) -> None:
    """Write ``source`` with each static MatMul weight in 8 bits, one scale a block of 32 inputs (``MatMulNBits``)."""
    with contained(target.parent):
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        quantizer = MatMulNBitsQuantizer(
            onnx.load(source), bits=8, block_size=BLOCK, is_symmetric=True, accuracy_level=_ACCURACY_LEVEL
        )
        quantizer.process()
        model = quantizer.model.model
        onnx.save_model(model, target, save_as_external_data=True, location=f"{target.name}.data")
