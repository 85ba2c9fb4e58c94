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
    folder: Path, ranges: Mapping[str, Mapping[str, TensorRange]], method: RangeMethod, samples: int
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

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    origin = {"method": str(method), "samples": samples}
    ends = {graph: {name: [each.low, each.high] for name, each in of.items()} for graph, of in ranges.items()}
    content = json.dumps({**origin, "graphs": ends}, indent=1, sort_keys=True) + "\n"
    write_atomic(folder / RANGES, content.encode(), None)
    return {**origin, "graphs": {graph: summary(of) for graph, of in ranges.items()}}
