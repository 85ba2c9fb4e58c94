"""What a bundle says of its activation ranges: each of them in a file, and a summary in the manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobiedit.calibration.activation_ranges import RangeMethod, TensorRange, summary
from mobiedit.runtime.bundle_layout import RANGES
from mobiedit.runtime.files import write_atomic


def write_ranges(
    folder: Path,
    ranges: Mapping[str, Mapping[str, TensorRange]],
    method: RangeMethod,
    samples: int,
    eight_bits: Mapping[str, Mapping[str, TensorRange]] | None = None,
) -> dict[str, Any]:
    """Write the ranges of all graphs, as JSON with sorted keys, and return what the manifest says of them.

    Parameters
    ----------
    folder
        The bundle.
    ranges
        By graph and tensor.
    samples
        Lines of text that they were taken from.
    eight_bits
        Ranges of the tensors that are converted to 8 bits, where some are.

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    origin = {"method": str(method), "samples": samples}
    record = {**origin, "graphs": _ends(ranges)} | ({} if eight_bits is None else {"eight_bits": _ends(eight_bits)})
    content = json.dumps(record, indent=1, sort_keys=True) + "\n"
    write_atomic(folder / RANGES, content.encode(), None)
    return {**origin, "graphs": {graph: summary(of) for graph, of in ranges.items()}}


def _ends(ranges: Mapping[str, Mapping[str, TensorRange]]) -> dict[str, dict[str, list[float]]]:
    return {graph: {name: [each.low, each.high] for name, each in of.items()} for graph, of in ranges.items()}
