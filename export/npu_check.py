"""Run written graphs on Qualcomm's HTP simulator, with nothing left to the CPU, and compare them with the CPU provider.

The simulator comes in the x86-64 Linux wheel of ``onnxruntime-qnn``. What it refuses, an NPU would refuse too.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from mobiedit.runtime.bundle_layout import GRAPHS, graph_file
from mobiedit.runtime.errors import ExportError

MIN_COSINE = 0.999
"""Between the simulator and the CPU provider on the same file: integer arithmetic rounds a little differently."""

_PROVIDER = "QNNExecutionProvider"
_SOC_MODEL = "57"  # SM8650. Without a SoC the simulator computes wrongly and says nothing
_AXES = {"batch": 2, "tokens": 4, "past": 6, "total": 10, "rows": 4}  # the NPU takes fixed shapes only


def require_simulator() -> None:
    """Refuse to go on where the simulator is not installed.

    Raises
    ------
    ExportError
        When ``onnxruntime-qnn`` is missing.
    """
    if importlib.util.find_spec("onnxruntime_qnn") is None:
        raise ExportError(
            "--target qnn checks the graphs on the NPU's simulator, which is not installed: "
            "run `pip install onnxruntime-qnn` on x86-64 Linux, or use --target cpu (the graphs are the same)"
        )


def compare_on_npu(folder: Path, advance: Callable[[int], None] = lambda graphs: None) -> dict[str, float]:
    """Return the cosine between simulator and CPU of each graph's outputs, on random inputs.

    Raises
    ------
    ExportError
        When a graph does not run on the NPU as a whole, or gives other results there.
    """
    require_simulator()
    import onnxruntime_qnn

    if not _devices():
        ort.register_execution_provider_library(_PROVIDER, onnxruntime_qnn.get_library_path())
    options = {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), "soc_model": _SOC_MODEL}
    cosines = {}
    for graph in GRAPHS:
        path = folder / graph_file(graph)
        cpu = ort.InferenceSession(str(path), _session_options(), providers=["CPUExecutionProvider"])
        fixed = _session_options()
        fixed.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        fixed.add_provider_for_devices(_devices(), options)
        try:
            npu = ort.InferenceSession(str(path), fixed)
        except Exception as error:  # ONNX Runtime raises several unrelated types
            raise ExportError(
                f"{path.name} does not run on the NPU as a whole ({str(error).splitlines()[0][:160]}): use --target cpu"
            ) from error
        feeds = _random_feeds(cpu)
        pairs = zip(npu.run(None, feeds), cpu.run(None, feeds), strict=True)
        cosines[graph] = min(_cosine(a, b) for a, b in pairs)
        if not cosines[graph] >= MIN_COSINE:
            raise ExportError(
                f"{path.name} gives other results on the NPU (cosine {cosines[graph]:.4f}): use --target cpu"
            )
        advance(1)
    return cosines


def _devices() -> list[Any]:
    return [device for device in ort.get_ep_devices() if device.ep_name == _PROVIDER]


def _session_options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    for axis, size in _AXES.items():
        options.add_free_dimension_override_by_name(axis, size)
    return options


def _random_feeds(session: ort.InferenceSession) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    feeds = {}
    for value in session.get_inputs():
        shape = [_AXES.get(axis, axis) for axis in value.shape]
        feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
    if "mask" in feeds:
        feeds["mask"] = np.zeros_like(feeds["mask"])
    return feeds


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))
