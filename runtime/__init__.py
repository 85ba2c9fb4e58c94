"""The device side: open a bundle, ask it, teach it facts by forward passes alone.

It needs numpy and ONNX Runtime, never torch.
"""

from .bundle import Bundle, open_bundle
from .configuration import EditConfig, ExecutionConfig, ExecutionProvider, LossConfig, PrefixCache, ZerothOrderConfig
from .editor import EditResult
from .errors import MobiEditError

__all__ = [
    "Bundle",
    "EditConfig",
    "EditResult",
    "ExecutionConfig",
    "ExecutionProvider",
    "LossConfig",
    "MobiEditError",
    "PrefixCache",
    "ZerothOrderConfig",
    "open_bundle",
]
