"""The names of a bundle's files and of its tensors: the one place where both the exporter and the runtime look."""

from __future__ import annotations

from collections.abc import Iterable

GRAPHS = ("prefix", "edit", "suffix", "head")
SEGMENT_OUTPUTS = {"prefix": "residual_out", "suffix": "hidden_out"}
"""What the hidden states of the two decoder segments are called."""
CONSTANTS = "constants.safetensors"
"""Tensors ``inverse_frequencies`` [head_dim / 2]; ``sink_k.i``, ``sink_v.i`` [1, n_kv, 1, head_dim] of each layer."""
EMBEDDING = "embedding.safetensors"
"""Tensor ``embedding`` [V, D], float16 or float32; and ``unembedding``, where the head has weights of its own."""
KEY_STATISTICS = "key_statistics.safetensors"
"""Tensors ``directions`` [r, F] float16, ``weights`` [r], ``scale`` [F] float32: see `KeyStatistics`."""
LENS = "lens.safetensors"
"""The fields of `Lens`, float16."""
RANGES = "ranges.json"
"""Static activation ranges: by graph and tensor its low and high end. A record; nothing reads it."""
TOKENIZER = "tokenizer.json"
EDITS = "edits"
NPU_PRECISIONS = ("w8a16", "w8a8", "mixed")
"""What the manifest calls the precisions of static 8-bit weights and static activations: those that the NPU takes."""


def graph_file(name: str) -> str:
    """Return the file name of a graph; its weights are in the same name with ``.data`` behind."""
    return f"{name}.onnx"


def segment_names(output: str, layers: Iterable[int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of a decoder segment's inputs and outputs, in order.

    Parameters
    ----------
    output
        What its hidden states are called, the first of the outputs.
    layers
        The model's layers that it has.
    """
    caches = [f"{part}.{layer}" for layer in layers for part in "kv"]
    inputs = ("hidden", "cos", "sin", "mask", *(f"past_{cache}" for cache in caches))
    return inputs, (output, *(f"new_{cache}" for cache in caches))
