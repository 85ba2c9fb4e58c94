"""Sizes of a bundle and memory of its export, from the configuration alone."""

from __future__ import annotations

from dataclasses import dataclass

from mobiedit.calibration.compact_statistics import affordable_rank, compact_bytes
from mobiedit.calibration.lens import LensConfig, lens_numbers
from mobiedit.runtime.bundle_layout import EMBEDDING, KEY_STATISTICS, LENS
from mobiedit.runtime.manifest import ModelShape

from .configuration import KEY_STATISTICS_BYTES, Precision

_FP32, _HALF = 4, 2
_BYTES_PER_WEIGHT = {
    Precision.FP32: 4.0,
    Precision.FP16: 2.0,
    Precision.W8A16: 1.0,
    Precision.W8A8: 1.0,
    Precision.MIXED: 1.0,
    Precision.W8: 1.0,
    Precision.W4: 0.5,
}
_FP32_A_BLOCK = {Precision.W8: 1, Precision.W4: 2}
"""Scales and zero points."""

_LIBRARIES = 900e6  # resident after importing torch, transformers and ONNX Runtime, with their arenas
_FP32_COPIES = {
    Precision.FP32: 2.0,
    Precision.FP16: 2.0,
    Precision.W8A16: 2.4,
    Precision.W8A8: 2.4,
    Precision.MIXED: 3.4,
    Precision.W8: 1.9,
    Precision.W4: 1.9,
}
"""FP32 copies of the weights at the peak: the source model's, its sessions', the quantiser's (docs/benchmarks.md).

Fitted to exports for fp32, w8a16 and w8; fp16 and w4 are taken to be as fp32 and w8."""

_WEIGHT_BY_WEIGHT = (Precision.FP32, Precision.W8, Precision.W4)
"""Precisions whose graphs are written, and read again, without ever being in memory as a whole."""

_MAPPING_LIBRARIES = 450e6  # without arenas of whole graphs
_LENS_COPIES = 5  # its maps, their gradients, Adam's averages, a copy
_READOUTS = 1000  # rows of logits while it is fitted, and what they are computed from


@dataclass(frozen=True)
class Plan:
    """What an export will write and need.

    Attributes
    ----------
    parameters
        Weights of the source model.
    files
        Predicted bytes of the large files, by name; graphs with their weights.
    peak_bytes
        Predicted peak memory of the export.
    notes
        What the user should know of the prediction.
    """

    parameters: int
    files: dict[str, int]
    peak_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        """Predicted bytes of the bundle."""
        return sum(self.files.values())


def plan_export(
    shape: ModelShape,
    layer: int,
    precision: Precision,
    block: int,
    *,
    half: bool = False,
    key_statistics: int = KEY_STATISTICS_BYTES,
) -> Plan:
    """Predict sizes for an edit layer and a precision.

    Parameters
    ----------
    block
        Inputs that share a scale in ``w8`` and ``w4``.
    half
        Whether the checkpoint is in half precision, and so stays on its file's pages.
    key_statistics
        Bytes that their file may have.
    """
    projection = shape.width * shape.head_dim
    attention = 2 * projection * (shape.n_heads + shape.n_kv_heads)
    mlp = 3 * shape.width * shape.mlp_width
    vocabulary, vocabulary_row = shape.vocabulary * shape.width, _FP32 * shape.vocabulary
    weight, head = (
        _BYTES_PER_WEIGHT[each] + _FP32_A_BLOCK.get(each, 0) * _FP32 / block for each in (precision, precision.of_head)
    )
    files = {
        "prefix.onnx": round(weight * (layer * (attention + mlp) + attention)),
        "edit.onnx": _FP32 * mlp,
        "suffix.onnx": round(weight * (shape.n_layers - 1 - layer) * (attention + mlp)),
        "head.onnx": round(head * vocabulary),
        EMBEDDING: vocabulary * (1 if shape.tied_head else 2) * (_FP32 if precision is Precision.FP32 else _HALF),
        LENS: _HALF * lens_numbers(shape.width, LensConfig()),
        KEY_STATISTICS: compact_bytes(shape.mlp_width, affordable_rank(shape.mlp_width, key_statistics)),
    }
    layers = shape.n_layers * (attention + mlp)
    parameters = layers + vocabulary * (1 if shape.tied_head else 2)
    if half and precision in _WEIGHT_BY_WEIGHT:
        lens = _LENS_COPIES * _FP32 * lens_numbers(shape.width, LensConfig())
        peak = _MAPPING_LIBRARIES + _HALF * parameters + lens + _FP32 * shape.mlp_width**2 + _READOUTS * vocabulary_row
    else:
        # The head graph holds its own copy of the vocabulary matrix, tied or not.
        peak = _LIBRARIES + _FP32_COPIES[precision] * _FP32 * (layers + vocabulary) + 3 * 8 * shape.mlp_width**2
    return Plan(parameters, files, round(peak))
