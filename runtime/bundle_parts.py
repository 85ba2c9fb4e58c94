"""Load a decoder's graphs and constants from a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from .bundle_layout import CONSTANTS, EMBEDDING, GRAPHS, graph_file
from .configuration import ExecutionConfig
from .contexts import SocContexts
from .decoder import DecoderParts
from .errors import BundleError
from .execution import Graph, Runnable
from .manifest import ModelShape
from .static_graphs import static_graphs


def load_parts(
    folder: Path,
    shape: ModelShape,
    edit_layer: int,
    mask_value: float,
    config: ExecutionConfig,
    *,
    fold_weights: bool,
    rows: int = 1,
    graphs: Mapping[str, Runnable] | None = None,
    contexts: Mapping[str, SocContexts] | None = None,
) -> DecoderParts:
    """Open the four graphs and read the constants.

    Parameters
    ----------
    fold_weights
        As in `Graph`; the NPU does not fold.
    rows
        Of an edit: where shapes are fixed, one of them has so many.
    graphs
        Others to be run instead of those in the folder, by name.
    contexts
        The bundle's, by SoC.

    Raises
    ------
    BundleError
        When a file is missing or is not what its name says.
    """
    constants = read_tensors(folder / CONSTANTS)
    names = [f"sink_{part}.{layer}" for layer in range(shape.n_layers) for part in "kv"]
    missing = [name for name in ("inverse_frequencies", *names) if name not in constants]
    if missing:
        raise BundleError(f"{CONSTANTS} lacks {missing[0]!r}: export the bundle again")
    vocabulary, unembedding = read_tensors(folder / EMBEDDING), "embedding" if shape.tied_head else "unembedding"
    if absent := [name for name in ("embedding", unembedding) if name not in vocabulary]:
        raise BundleError(f"{EMBEDDING} lacks {absent[0]!r}: export the bundle again")
    if graphs is not None:
        pass
    elif soc := config.target:
        compiled = (contexts or {}).get(soc.name)
        graphs = static_graphs(folder, shape, edit_layer, mask_value, rows, config, compiled)
    else:
        graphs = {name: Graph(folder / graph_file(name), config, fold_weights=fold_weights) for name in GRAPHS}
    return DecoderParts(
        **graphs,
        embedding=vocabulary["embedding"],
        unembedding=vocabulary[unembedding],
        inverse_frequencies=constants["inverse_frequencies"],
        sink=tuple(constants[name] for name in names),
        shape=shape,
        edit_layer=edit_layer,
        mask_value=mask_value,
    )


def read_tensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """Read a safetensors file.

    Raises
    ------
    BundleError
        When it is missing or damaged.
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path.name} cannot be read ({error}): export the bundle again") from error
