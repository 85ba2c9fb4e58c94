"""The names of a bundle's files: the one place where both the exporter and the runtime look them up."""

from __future__ import annotations

GRAPHS = ("prefix", "edit", "suffix", "head")
CONSTANTS = "constants.safetensors"
"""Tensors ``inverse_frequencies`` [head_dim / 2]; ``sink_k.i``, ``sink_v.i`` [1, n_kv, 1, head_dim] of each layer."""
EMBEDDING = "embedding.safetensors"
"""Tensor ``embedding`` [V, D], float16 or float32; and ``unembedding``, where the head has weights of its own."""
KEY_STATISTICS = "key_statistics.safetensors"
"""Tensor ``inverse_covariance`` [F, F], float32."""
LENS = "lens.safetensors"
"""The fields of `Lens`, float16."""
RANGES = "ranges.json"
"""Activation ranges of the ``w8a16`` graphs: by graph and tensor its low and high end. A record; nothing reads it."""
TOKENIZER = "tokenizer.json"
EDITS = "edits"


def graph_file(name: str) -> str:
    """Return the file name of a graph; its weights are in the same name with ``.data`` behind."""
    return f"{name}.onnx"
