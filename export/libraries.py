"""The host's libraries: whether they are there, and what they may do to the terminal and the cores."""

from __future__ import annotations

import importlib.util
import logging
import os

from mobiedit.runtime.errors import ExportError

_LIBRARIES = ("torch", "transformers", "onnx", "onnxscript")


def prepare_libraries(action: str) -> None:
    """Leave the terminal to our own bars and lines, and the cores to whoever works; call it before any is imported.

    Parameters
    ----------
    action
        What needs them, as a message begins: "exporting".

    Raises
    ------
    ExportError
        When one of them is not installed.
    """
    # torch's idle threads spin, which on a busy machine costs ten times the work itself. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Set first: a quantiser sets the root logger up at INFO when it is imported.
    logging.basicConfig(level=logging.ERROR)
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"{action} needs {', '.join(missing)}: install mobiedit with its extra [export]")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
