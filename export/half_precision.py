"""Graphs in float16 (``fp16``)."""

from __future__ import annotations

from pathlib import Path

import onnx

from .third_party import contained

FP32_OPERATORS = ("RMSNormalization", "Softmax")
"""Operators that stay FP32: the square of a residual above 255 does not fit FP16, and a softmax sums many numbers."""


def convert_to_half(source: Path, target: Path) -> None:
    """Write ``source`` with weights and arithmetic in FP16, by ONNX Runtime's converter.

    Inputs and outputs stay FP32. Weights beyond FP16's range are cut to its ends; the check that follows notices.
    """
    with contained(target.parent):
        from onnxruntime.transformers.float16 import convert_float_to_float16

        model = convert_float_to_float16(onnx.load(source), keep_io_types=True, op_block_list=list(FP32_OPERATORS))
        onnx.save_model(model, target, save_as_external_data=True, location=f"{target.name}.data")
