"""Run one ONNX graph on an execution provider."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from . import qnn
from .configuration import ExecutionConfig
from .costs import CostMeter
from .errors import BundleError, NumericsError, first_line
from .heap import release_freed_memory, return_large_blocks

Feeds = dict[str, NDArray[Any]]
Fetched = dict[str, NDArray[np.float32]]


class Runnable(Protocol):
    """What a decoder runs: a graph in one session, or one in several of fixed shapes."""

    @property
    def name(self) -> str:
        """Its file's name."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of its inputs, in order."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of its outputs, in order."""

    def run(self, feeds: Feeds, meter: CostMeter | None = None) -> Fetched:
        """Evaluate it, and count what that took into the meter."""

    def placement(self) -> dict[str, int]:
        """Return how many nodes each provider runs."""


class Graph:
    """An ONNX graph in one session.

    Parameters
    ----------
    path
        The graph; its external data lies beside it.
    config
        Execution settings.
    fold_weights
        Dequantise static 8-bit weights once, when the session is made, instead of in every run: about twice as fast
        for ``w8a16``, for FP32's memory. The activations' quantisation stays as it is. For the CPU alone.
    packed
        Let the CPU's kernels copy weights into a form of their own, which is faster. Without, they stay on the pages
        of their file.
    axes
        Sizes of symbolic axes that are fixed. The CPU needs none, the NPU all.

    Raises
    ------
    BundleError
        When ONNX Runtime cannot load the graph.
    ExecutionError
        When the NPU does not take it.
    """

    def __init__(
        self,
        path: Path,
        config: ExecutionConfig,
        *,
        fold_weights: bool = False,
        packed: bool = True,
        axes: Mapping[str, int] | None = None,
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = config.threads
        options.log_severity_level = 3
        # Idle workers that spin steal the cores from numpy between two runs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        for axis, size in (axes or {}).items():
            options.add_free_dimension_override_by_name(axis, size)
        if not packed:
            options.add_session_config_entry("session.disable_prepacking", "1")
        if config.target:
            self._session = qnn.open_session(path, options, config.target, config.qnn)
        else:
            self._session = _cpu_session(path, options, fold_weights)
        self.name = path.name
        self.inputs = tuple(i.name for i in self._session.get_inputs())
        self.outputs = tuple(o.name for o in self._session.get_outputs())

    def run(self, feeds: Feeds, meter: CostMeter | None = None) -> Fetched:
        """Evaluate the graph, in one dispatch.

        Raises
        ------
        NumericsError
            When an output is not finite.
        """
        # Inputs bound once as OrtValues save nothing: QNN's simulator takes as long with them.
        values = self._session.run(None, feeds)
        for name, value in zip(self.outputs, values, strict=True):
            if not np.isfinite(value).all():
                raise NumericsError(
                    f"{self.name} returned NaN or infinity in {name!r}: "
                    "run `mobiedit verify`, or export the bundle in a higher precision"
                )
        if meter:
            meter.dispatches += 1
            meter.io_bytes += sum(array.nbytes for array in (*feeds.values(), *values))
        return dict(zip(self.outputs, values, strict=True))

    def placement(self) -> dict[str, int]:
        """Return how many of its nodes each provider runs; known on QNN alone."""
        return qnn.placement(self._session)


def _cpu_session(path: Path, options: ort.SessionOptions, fold_weights: bool) -> ort.InferenceSession:
    # An arena keeps every buffer that a run of any shape has had; without one an edit is no slower, and far smaller.
    options.enable_cpu_mem_arena = False
    return_large_blocks()
    if fold_weights:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises several unrelated types
        raise BundleError(f"{path.name} cannot be loaded ({first_line(error)}): export the bundle again") from error
    release_freed_memory()  # of weights that were packed or dequantised
    return session
