"""Whether an edit runs in stages, and the decoder for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .bundle_layout import GRAPHS, NPU_PRECISIONS, graph_file
from .bundle_parts import cpu_openers, load_decoder
from .configuration import EditConfig, ExecutionConfig, ExecutionProvider, PrefixCache, Staging
from .decoder import Decoder
from .errors import RequestError
from .manifest import Manifest
from .staging import GraphStages

STAGING_BYTES = 10**9
"""Weights of the four graphs above which `Staging.AUTO` stages: below, swapping takes longer than it is worth."""


def graph_bytes(manifest: Manifest, graph: str) -> int:
    """Return the size of a graph's files."""
    name = graph_file(graph)
    return sum(manifest.files[each].size for each in (name, f"{name}.data") if each in manifest.files)


def stages_edits(manifest: Manifest, execution: ExecutionConfig, config: EditConfig | None = None) -> bool:
    """Return whether edits of a bundle are staged.

    Raises
    ------
    RequestError
        When they shall be, and an edit without a prefix cache would swap the graphs at every step.
    """
    if execution.provider is ExecutionProvider.QNN or execution.staging is Staging.OFF:
        return False
    swaps = config is not None and config.prefix_cache is PrefixCache.OFF
    if execution.staging is Staging.ON:
        if swaps:
            raise RequestError("--staging on would open each graph anew at every step: leave out --prefix-cache off")
        return True
    return not swaps and sum(graph_bytes(manifest, graph) for graph in GRAPHS) > STAGING_BYTES


@contextmanager
def staged_decoder(folder: Path, manifest: Manifest, execution: ExecutionConfig) -> Iterator[Decoder]:
    """Yield a decoder that has the graphs of one stage in memory; behind it none is left open."""
    openers = cpu_openers(folder, execution, fold_weights=manifest.precision in NPU_PRECISIONS)
    stages = GraphStages(openers)
    try:
        yield load_decoder(folder, manifest, execution, stages)
    finally:
        stages.close()
