"""Run written graphs on Qualcomm's HTP simulator, with nothing left to the CPU, and compare them with the CPU provider.

The simulator comes in the x86-64 Linux wheel of ``onnxruntime-qnn``. What it refuses, an NPU would refuse too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from mobiedit.runtime import qnn
from mobiedit.runtime.bundle_layout import GRAPHS, graph_file
from mobiedit.runtime.configuration import ExecutionConfig, ExecutionProvider
from mobiedit.runtime.errors import ExecutionError, ExportError
from mobiedit.runtime.execution import Feeds, Graph
from mobiedit.runtime.soc import SIMULATED

MIN_COSINE = 0.999
"""Between the simulator and the CPU provider on the same file: integer arithmetic rounds a little differently."""

MIN_COSINE_AT_8_BITS = 0.99
"""The same where some activations have 8 bits: one step is 257 times as long, and random inputs fill few of them."""

_AXES = {"batch": 2, "tokens": 4, "past": 6, "total": 10, "rows": 4}  # the NPU takes fixed shapes only


def require_simulator() -> None:
    """Refuse to go on where the simulator is not installed.

    Raises
    ------
    ExportError
        When ``onnxruntime-qnn`` is missing.
    """
    if not qnn.installed():
        raise ExportError(
            "--target qnn checks the graphs on the NPU's simulator, which is not installed: "
            "run `pip install onnxruntime-qnn` on x86-64 Linux, or use --target cpu (the graphs are the same)"
        )


def compare_on_npu(
    folder: Path, advance: Callable[[int], None] = lambda graphs: None, min_cosine: float = MIN_COSINE
) -> dict[str, float]:
    """Return the cosine between simulator and CPU of each graph's outputs, on random inputs.

    Raises
    ------
    ExportError
        When a graph does not run on the NPU as a whole, or gives other results there.
    """
    require_simulator()
    cosines = {}
    for graph in GRAPHS:
        path = folder / graph_file(graph)
        feeds = _random_feeds(path)
        cpu = Graph(path, ExecutionConfig(), axes=_AXES).run(feeds)
        try:
            npu = Graph(path, ExecutionConfig(provider=ExecutionProvider.QNN, soc=SIMULATED), axes=_AXES).run(feeds)
        except ExecutionError as error:
            raise ExportError(str(error).replace("--ep cpu", "--target cpu")) from error
        cosines[graph] = min(cosine(npu[name], cpu[name]) for name in cpu)
        if not cosines[graph] >= min_cosine:
            raise ExportError(
                f"{path.name} gives other results on the NPU (cosine {cosines[graph]:.4f}): use --target cpu"
            )
        advance(1)
    return cosines


def _random_feeds(path: Path) -> Feeds:
    rng = np.random.default_rng(0)
    feeds = {}
    for value in onnx.load(path, load_external_data=False).graph.input:
        shape = [_AXES[dim.dim_param] if dim.dim_param else dim.dim_value for dim in value.type.tensor_type.shape.dim]
        feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
    if "mask" in feeds:
        feeds["mask"] = np.zeros_like(feeds["mask"])
    return feeds


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Return the cosine of two arrays of the same shape."""
    return float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))
