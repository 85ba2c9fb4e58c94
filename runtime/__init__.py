"""The device side: open a bundle, ask it, teach it facts by forward passes alone.

It needs numpy and ONNX Runtime, never torch.
"""

from .bundle import Bundle, open_bundle
from .closed_form import Method
from .configuration import EditConfig, ExecutionConfig, ExecutionProvider, LossConfig, PrefixCache, ZerothOrderConfig
from .edit_result import EditResult
from .errors import MobiEditError
from .prompt_rows import EditRequest

__all__ = [
    "Bundle",
    "EditConfig",
    "EditRequest",
    "EditResult",
    "ExecutionConfig",
    "ExecutionProvider",
    "LossConfig",
    "Method",
    "MobiEditError",
    "PrefixCache",
    "ZerothOrderConfig",
    "open_bundle",
]
