"""The model families that can be exported: one small file each.

The parts that differ (biases, head norms) are found on the modules.
"""

from __future__ import annotations

from typing import Any

from mobiedit.runtime.errors import ExportError

from .architecture import Architecture, context_of
from .llama import LLAMA
from .mistral import MISTRAL
from .qwen2 import QWEN2
from .qwen3 import QWEN3

__all__ = ["ARCHITECTURES", "Architecture", "context_of", "find_architecture"]

ARCHITECTURES = {a.model_type: a for a in (LLAMA, MISTRAL, QWEN2, QWEN3)}


def find_architecture(config: Any) -> Architecture:  # noqa: ANN401 - transformers' configurations have no common static type
    """Return the family of a checkpoint, from its configuration alone.

    Raises
    ------
    ExportError
        When the family, or something in this checkpoint, is not supported.
    """
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None:
        raise ExportError(
            f"architecture {config.model_type!r} is not supported: choose a model of {', '.join(ARCHITECTURES)}"
        )
    reasons = architecture.refusals(config)
    if reasons:
        raise ExportError(
            f"this {config.model_type} checkpoint cannot be exported, it has {'; '.join(reasons)}: choose another model"
        )
    return architecture
