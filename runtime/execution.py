"""Run one ONNX graph on an execution provider."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from .configuration import ExecutionConfig
from .errors import BundleError, NumericsError


class Graph:
    """An ONNX graph in a session on the CPU execution provider.

    Parameters
    ----------
    path
        The graph; its external data lies beside it.
    config
        Execution settings.
    fold_weights
        Dequantise static 8-bit weights once, when the session is made, instead of in every run: about twice as fast
        for ``w8a16``, for FP32's memory. The activations' quantisation stays as it is.

    Raises
    ------
    BundleError
        When ONNX Runtime cannot load the graph.
    """

    def __init__(self, path: Path, config: ExecutionConfig, *, fold_weights: bool = False) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = config.threads
        options.log_severity_level = 3
        # Idle workers that spin steal the cores from numpy between two runs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if fold_weights:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises several unrelated types
            raise BundleError(
                f"{path.name} cannot be loaded ({_first_line(error)}): export the bundle again"
            ) from error
        self.name = path.name
        self.inputs = tuple(i.name for i in self._session.get_inputs())
        self.outputs = tuple(o.name for o in self._session.get_outputs())

    def run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Evaluate the graph.

        Raises
        ------
        NumericsError
            When an output is not finite.
        """
        values = self._session.run(None, feeds)
        for name, value in zip(self.outputs, values, strict=True):
            if not np.isfinite(value).all():
                raise NumericsError(
                    f"{self.name} returned NaN or infinity in {name!r}: "
                    "run `mobiedit verify`, or export the bundle in a higher precision"
                )
        return dict(zip(self.outputs, values, strict=True))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
