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


def convert_graphs(work: Path, folder: Path, precision: Precision, block: int, advance: Callable[[int], None]) -> None:
    """Write each of `CONVERTED` into ``folder`` from the FP32 graph of its name in ``work``.

    Parameters
    ----------
    block
        Inputs that share a scale, where weights have few bits.
    """
    for graph in CONVERTED:
        source, target = work / graph_file(graph), folder / graph_file(graph)
        match precision.of_head if graph == "head" else precision:
            case Precision.W8:
                quantise_to_8_bits(source, target, block)
            case Precision.W4:
                quantise_to_4_bits(source, target, block)
            case Precision.FP16:
                convert_to_half(source, target)
            case other:
                raise ValueError(f"{other} graphs need calibration text")
        advance(1)
