"""Qwen3: norms on each head's query and key, a head size of its own, no biases by default."""

from .architecture import Architecture, common_refusals

QWEN3 = Architecture(model_type="qwen3", refusals=common_refusals)
