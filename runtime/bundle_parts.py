"""Load a decoder's graphs and constants from a folder; the vocabulary's rows stay in their file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from .bundle_layout import CONSTANTS, EMBEDDING, NPU_PRECISIONS, graph_file
from .configuration import ExecutionConfig
from .costs import CostMeter
from .decoder import Decoder, DecoderParts
from .errors import BundleError
from .execution import Graph, Runnable
from .manifest import Manifest, ModelShape
from .staging import OPENING_ORDER, GraphStages, OpenRunnable
from .static_graphs import static_graphs
from .stored_matrix import StoredMatrix


def load_parts(
    folder: Path,
    shape: ModelShape,
    edit_layer: int,
    mask_value: float,
    graphs: Mapping[str, Runnable],
    *,
    fixed_shapes: bool = False,
) -> DecoderParts:
    """Read the constants and put them beside the four graphs.

    Parameters
    ----------
    graphs
        By name, from `cpu_graphs` or another maker.
    fixed_shapes
        As in `DecoderParts`.

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
    embedding = StoredMatrix.find(folder / EMBEDDING, "embedding")
    unembedding = embedding if shape.tied_head else StoredMatrix.find(folder / EMBEDDING, "unembedding")
    return DecoderParts(
        **graphs,
        embedding=embedding,
        unembedding=unembedding,
        inverse_frequencies=constants["inverse_frequencies"],
        sink=tuple(constants[name] for name in names),
        shape=shape,
        edit_layer=edit_layer,
        mask_value=mask_value,
        fixed_shapes=fixed_shapes,
    )


def load_decoder(
    folder: Path, manifest: Manifest, config: ExecutionConfig, stages: GraphStages | None = None
) -> Decoder:
    """Return a bundle's decoder, without edits of its own.

    Parameters
    ----------
    stages
        Opens the graphs on the CPU, stage by stage; without it all of them are open.

    Raises
    ------
    BundleError
        As `load_parts`.
    """
    shape, layer, mask_value = manifest.shape, manifest.edit_layer, manifest.mask_value
    graphs: Mapping[str, Runnable]
    if soc := config.target:
        rows = len(manifest.row_prefixes) + 1  # and the kept row
        graphs = static_graphs(folder, shape, layer, mask_value, rows, config, manifest.contexts.get(soc.name))
    elif stages:
        graphs = stages.graphs()
    else:
        graphs = cpu_graphs(folder, config, fold_weights=manifest.precision in NPU_PRECISIONS)
    parts = load_parts(folder, shape, layer, mask_value, graphs, fixed_shapes=bool(config.target))
    return Decoder(parts, CostMeter())


def cpu_graphs(folder: Path, config: ExecutionConfig, *, fold_weights: bool) -> dict[str, Runnable]:
    """Return the four graphs, open on the CPU; ``fold_weights`` as in `Graph`."""
    return {name: opener() for name, opener in cpu_openers(folder, config, fold_weights=fold_weights).items()}


def cpu_openers(
    folder: Path, config: ExecutionConfig, *, fold_weights: bool, packed: bool = True
) -> dict[str, OpenRunnable]:
    """Return what opens each of the four graphs on the CPU, the one that is largest while it opens first."""
    return {
        name: partial(Graph, folder / graph_file(name), config, fold_weights=fold_weights, packed=packed)
        for name in OPENING_ORDER
    }


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


def read_tensor(path: Path, name: str) -> NDArray[np.float32]:
    """Read one tensor of a safetensors file.

    Raises
    ------
    BundleError
        When the file is missing or damaged, or has no such tensor.
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            if name in file.keys():  # noqa: SIM118 - not a dict
                return np.asarray(file.get_tensor(name))
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path.name} cannot be read ({error}): export the bundle again") from error
    raise BundleError(f"{path.name} lacks {name!r}: export the bundle again")
