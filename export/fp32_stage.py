"""The export's stage that writes all that a decoder is loaded from, in FP32."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from mobiedit.calibration.sink import sink_cache
from mobiedit.runtime.bundle_layout import CONSTANTS, EMBEDDING, graph_file
from mobiedit.runtime.bundle_writer import save_tensors

from .checkpoint import Checkpoint
from .graphs import graph_specs, write_graph
from .progress import Stages
from .source_graphs import SourceGraph, source_graphs
from .token_rows import half_suffices, token_rows


def write_fp32(
    checkpoint: Checkpoint, layer: int, slots: int, sink: int, folder: Path, half_rows: Path, stages: Stages
) -> dict[str, SourceGraph]:
    """Write graphs, constants and embedding; return the source model's own graphs by name.

    Parameters
    ----------
    layer
        The edit layer.
    slots
        Edits that the edit graph takes.
    sink
        The sink token.
    half_rows
        The vocabulary's rows in FP16, if they were written: taken over where they are as good.
    """
    model, shape = checkpoint.model, checkpoint.shape
    specs = graph_specs(model, shape, layer, slots)
    with stages.stage("write the FP32 graphs", len(specs)) as advance:
        for graph, spec in specs.items():
            write_graph(spec, folder / graph_file(graph))
            advance(1)
    names = [f"sink_{part}.{i}" for i in range(shape.n_layers) for part in "kv"]
    sink_tensors = dict(zip(names, sink_cache(model, sink), strict=True))
    frequencies = model.model.rotary_emb.inv_freq.numpy().astype(np.float32)
    save_tensors(folder / CONSTANTS, {"inverse_frequencies": frequencies, **sink_tensors})
    if half_rows.exists() and half_suffices(checkpoint):
        os.link(half_rows, folder / EMBEDDING)
    else:
        save_tensors(folder / EMBEDDING, token_rows(checkpoint))
    return source_graphs(specs)
