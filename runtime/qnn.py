"""Sessions on the QNN execution provider: Qualcomm's NPU, or its simulator in the x86-64 Linux wheel.

``onnxruntime-qnn`` is a plug-in that a device without an NPU does not need: it is imported when first used. A session
is on the NPU as a whole or not at all; ONNX Runtime's fallback to the CPU would hide that nothing runs there.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnxruntime as ort

from .errors import ExecutionError, first_line
from .qnn_options import QnnOptions
from .soc import Soc, simulated_here

PROVIDER = "QNNExecutionProvider"
_FATAL = 4  # what QNN logs at lower levels when it refuses a graph is many lines long


def installed() -> bool:
    """Return whether the plug-in is there to be imported."""
    return importlib.util.find_spec("onnxruntime_qnn") is not None


def qairt_version() -> str:
    """Return the version of QAIRT, Qualcomm's AI runtime, that the installed provider has, as 2.51.0.

    Raises
    ------
    ExecutionError
        When the provider is not installed.
    """
    _require_installed()
    from onnxruntime_qnn import build_and_package_info

    return str(build_and_package_info.qnn_version)


def open_session(path: Path, options: ort.SessionOptions, soc: Soc, chosen: QnnOptions) -> ort.InferenceSession:
    """Open a graph on the NPU.

    Parameters
    ----------
    options
        With every axis fixed, unless the graph was compiled before: the NPU takes no others.
    soc
        What the graph is compiled for.
    chosen
        The provider's options.

    Raises
    ------
    ExecutionError
        When the provider is not installed or finds no device, or does not take the graph as a whole.
    """
    devices, backend = _devices()
    options.log_severity_level = _FATAL
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    settings = {"backend_path": backend, "soc_model": str(soc.model), **asdict(chosen)}
    try:
        options.add_provider_for_devices(devices, settings)
        _keep_notices_off_standard_output()
        return ort.InferenceSession(str(path), options)
    except Exception as error:  # ONNX Runtime raises several unrelated types
        raise ExecutionError(
            f"{path.name} does not run as a whole on the NPU of {soc.name} ({first_line(error)}): use --ep cpu"
        ) from error


def placement(session: ort.InferenceSession) -> dict[str, int]:
    """Return how many nodes of a session's optimised graph each provider runs."""
    parts = session.get_provider_graph_assignment_info()
    nodes = {PROVIDER: 0, "CPUExecutionProvider": 0}
    for part in parts:
        nodes[part.ep_name] = nodes.get(part.ep_name, 0) + len(part.get_nodes())
    return nodes


def _devices() -> tuple[list[Any], str]:
    """Return the provider's devices and the path of its HTP library; register the provider when none has."""
    _require_installed()
    try:
        import onnxruntime_qnn

        if not _registered():
            ort.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
        backend = str(onnxruntime_qnn.get_qnn_htp_path())
    except Exception as error:  # a wheel of another platform, or of another version of ONNX Runtime
        raise ExecutionError(
            f"the QNN provider cannot be loaded ({first_line(error)}): "
            "install a version of onnxruntime-qnn for this onnxruntime, or use --ep cpu"
        ) from error
    if not (found := _registered()):
        raise ExecutionError("the QNN provider finds no device here: use --ep cpu")
    return found, backend


def _require_installed() -> None:
    if not installed():
        raise ExecutionError("the QNN provider is not installed: pip install onnxruntime-qnn, or use --ep cpu")


def _registered() -> list[Any]:
    return [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]


def _keep_notices_off_standard_output() -> None:
    """Send to standard error what the simulator writes to standard output, from now on: that is for JSON alone.

    Its threads write late, after the session is there. Only Python's own output goes on to where standard output went.
    """
    try:
        is_process_output = sys.stdout.fileno() == 1
    except (AttributeError, OSError):  # none, or one in memory
        return
    if not is_process_output or not simulated_here():
        return
    sys.stdout.flush()
    former = sys.stdout
    lines = 1 if former.isatty() else -1  # as Python itself opens it
    sys.stdout = os.fdopen(os.dup(1), "w", lines, encoding=former.encoding, errors=former.errors)
    os.dup2(2, 1)
