"""Qwen2 and Qwen2.5: biases on the query, key and value projections."""

from .architecture import Architecture, common_refusals

QWEN2 = Architecture(model_type="qwen2", refusals=common_refusals)
