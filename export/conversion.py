"""Write a bundle's graphs in the precisions that need no calibration text, from the FP32 ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mobiedit.runtime.bundle_layout import graph_file

from .configuration import Precision
from .half_precision import convert_to_half
from .weight_only import quantise_to_4_bits, quantise_to_8_bits

CONVERTED = ("prefix", "suffix", "head")
"""The graphs that have the bundle's precision; the edit layer stays in FP32."""

_CONVERTERS = {
    Precision.W8: quantise_to_8_bits,
    Precision.W4: quantise_to_4_bits,
    Precision.FP16: convert_to_half,
}


def convert_graphs(work: Path, folder: Path, precision: Precision, advance: Callable[[int], None]) -> None:
    """Write each of `CONVERTED` into ``folder`` from the FP32 graph of its name in ``work``."""
    for graph in CONVERTED:
        convert = _CONVERTERS[precision.of_head if graph == "head" else precision]
        convert(work / graph_file(graph), folder / graph_file(graph))
        advance(1)
