"""Random inputs for the tiny Llama's graphs, to compare their outputs before and after a conversion."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

GRAPHS = ("prefix", "head")


def feeds(graph: str, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """Return inputs of a graph by name."""
    if graph == "head":
        return {"hidden": rng.standard_normal((9, 64)).astype(np.float32)}
    batch, tokens, past = 2, 6, 3
    angles = rng.uniform(0, 6, (batch, 1, tokens, 16))
    values: dict[str, Any] = {
        "hidden": rng.standard_normal((batch, tokens, 64)),
        "cos": np.cos(angles),
        "sin": np.sin(angles),
        "mask": np.triu(np.full((batch, 1, tokens, past + tokens), -100.0), k=past + 1),
        **{f"past_{part}.{i}": rng.standard_normal((batch, 2, past, 16)) for i in (0, 1) for part in "kv"},
    }
    return {name: value.astype(np.float32) for name, value in values.items()}
