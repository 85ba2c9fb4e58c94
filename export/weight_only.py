"""Graphs with weight-only 8 or 4 bits for deployment on a CPU (``w8``, ``w4``)."""

from __future__ import annotations

from pathlib import Path

import onnx

from .third_party import contained

BLOCK = 32
"""Inputs that share a scale, and in 4 bits a zero point."""

_ACCURACY_LEVEL = 4  # int8 arithmetic: the level for which ONNX Runtime has fast 8-bit kernels


def quantise_to_8_bits(source: Path, target: Path) -> None:
    """Write ``source`` with each static MatMul weight in 8 bits, symmetric, one scale a block (``MatMulNBits``)."""
    _quantise(source, target, 8)


def quantise_to_4_bits(source: Path, target: Path) -> None:
    """Write ``source`` with each static MatMul weight in 4 bits, by half-quadratic quantisation (HQQ).

    A block has a scale and a zero point, both FP32: 6 bits a weight in all. A zero point that is not rounded to one
    of the 16 levels keeps weights that had 4 bits before (docs/benchmarks.md). No calibration text is needed.
    """
    _quantise(source, target, 4)


def _quantise(source: Path, target: Path, bits: int) -> None:
    with contained(target.parent):
        from onnxruntime.quantization import matmul_nbits_quantizer as nbits

        if bits == 4:
            config = nbits.HQQWeightOnlyQuantConfig(block_size=BLOCK, bits=4)
        else:
            config = nbits.DefaultWeightOnlyQuantConfig(
                block_size=BLOCK, bits=8, is_symmetric=True, accuracy_level=_ACCURACY_LEVEL
            )
        quantizer = nbits.MatMulNBitsQuantizer(onnx.load(source), algo_config=config)
        quantizer.process()
        model = quantizer.model.model
        onnx.save_model(model, target, save_as_external_data=True, location=f"{target.name}.data")
