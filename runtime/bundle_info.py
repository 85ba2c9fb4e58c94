"""What a bundle is and what runs it, as plain data: `mobiedit info`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .bundle_layout import GRAPHS
from .configuration import ExecutionConfig
from .decoder import DecoderParts
from .edits_in_force import EditsInForce
from .manifest import Manifest
from .memory_plan import predicted_peaks
from .staged_edit import stages_edits


def describe(
    path: Path,
    manifest: Manifest,
    edits: EditsInForce,
    execution: ExecutionConfig,
    parts: Callable[[], DecoderParts],
) -> dict[str, Any]:
    """Return what a bundle is.

    Parameters
    ----------
    edits
        Its journal.
    parts
        Opens its graphs: where a SoC is the target, what stands for it is found out by compiling each of them.

    Raises
    ------
    ExecutionError
        When the NPU does not take a graph.
    """
    state, solved = edits.state(), edits.solved()
    return {
        "path": str(path),
        "base": {"name": manifest.base.name, "architecture": manifest.base.architecture},
        "layers": manifest.shape.n_layers,
        "edit_layer": manifest.edit_layer,
        "precision": manifest.precision,
        "target": manifest.target,
        "context": manifest.shape.context,
        **_execution(execution, parts),
        "contexts": describe_contexts(manifest),
        "staged_edits": stages_edits(manifest, execution),
        "predicted_peak_bytes": predicted_peaks(manifest, execution),
        "edits": len(solved.edits),
        "slots": {"used": min(len(solved.edits), manifest.slots), "total": manifest.slots},
        "covered_edits": len(state.active) - len(state.edits),
        "compaction_error": solved.compaction_error,
        "bytes": sum(entry.size for entry in manifest.files.values()),
        "checks": manifest.checks,
        "statistics": manifest.statistics,
        "tools": manifest.tools,
        "created": manifest.created,
        "torn_journal_bytes": state.dropped_bytes,
    }


def describe_contexts(manifest: Manifest) -> dict[str, Any]:
    """Return what was compiled for each SoC: its NPU's architecture, the compiler's version, files and their bytes."""
    return {
        soc: {
            "htp": f"v{each.htp}",
            "qairt": each.qairt,
            "files": len(each.files),
            "bytes": sum(manifest.files[name].size for file in each.files for name in (file.wrapper, file.binary)),
        }
        for soc, each in manifest.contexts.items()
    }


def _execution(execution: ExecutionConfig, parts: Callable[[], DecoderParts]) -> dict[str, Any]:
    provider = {"execution_provider": execution.provider.value}
    if not (soc := execution.target):
        return provider
    opened = parts()
    nodes = {graph: getattr(opened, graph).placement() for graph in GRAPHS}
    return {
        **provider,
        "soc": {"name": soc.name, "model": soc.model, "htp": soc.architecture, "found_in": soc.found_in},
        "nodes": nodes,
    }
