"""What the exporter has to know of a model family, and the refusals that all families share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_CONTEXT = 2048
"""Longest text of a bundle, in tokens: prompts on a device are short, and K/V grow with it."""


@dataclass(frozen=True)
class Architecture:
    """One model family.

    Attributes
    ----------
    model_type
        The family's name in a checkpoint's ``config.json``.
    refusals
        Configuration to the reasons for which this checkpoint cannot be exported.
    """

    model_type: str
    refusals: Callable[[Any], list[str]]


def context_of(config: Any) -> int:  # noqa: ANN401 - transformers' configurations have no common static type
    """Return the longest text, in tokens, that a bundle of this model takes."""
    return min(int(config.max_position_embeddings), MAX_CONTEXT)


def common_refusals(config: Any) -> list[str]:  # noqa: ANN401
    """Return the reasons that hold for every family."""
    reasons = []
    if config.hidden_act != "silu":
        reasons.append(f"activation {config.hidden_act!r} (only silu is supported)")
    rope = getattr(config, "rope_parameters", None) or {}
    rope_type = rope.get("rope_type", "default")
    if rope_type not in ("default", "llama3"):
        reasons.append(f"rope type {rope_type!r} (only default and llama3 are supported)")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        reasons.append("partial rotary embedding")
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if window is not None and window < context_of(config):
        reasons.append(f"sliding window of {window} tokens, shorter than the context of {context_of(config)}")
    return reasons
