"""Compile a bundle's graphs for a SoC: context binaries, which a device's NPU loads as they are.

The offline compiler comes in the x86-64 Linux wheel of ``onnxruntime-qnn``; a session whose options ask for a context
writes one. Weights are not shared between the shapes of a graph. The compiler does it (``ep.share_ep_contexts``: one
binary for three shapes of a 135M suffix, of 79 MB instead of 216), but the simulator of version 2.7.0 dies with a
segmentation fault when it loads such a binary, be it of two tiny graphs: nothing that we could not run is shipped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import onnxruntime as ort

from mobiedit.runtime import qnn
from mobiedit.runtime.bundle_layout import graph_file
from mobiedit.runtime.context_binary import BinaryTarget, read_target, referenced_files, require_target
from mobiedit.runtime.contexts import ContextFile, Shapes, SocContexts
from mobiedit.runtime.errors import BundleError, ExecutionError, ExportError
from mobiedit.runtime.qnn_options import QnnOptions
from mobiedit.runtime.soc import Soc


def compile_contexts(
    folder: Path, soc: Soc, shapes: Shapes, advance: Callable[[int], None] = lambda contexts: None
) -> SocContexts:
    """Write the context binaries of all graphs in a folder beside them, and return what the manifest says of them.

    Parameters
    ----------
    shapes
        The fixed shapes of each graph.
    advance
        Called with 1 for each context.

    Raises
    ------
    ExportError
        When a graph does not compile as a whole, or what comes of it is for another target.
    """
    files, targets = [], set()
    for graph, sizes in shapes.items():
        for axes in sizes:
            file, target = _compile(folder, graph, axes, soc)
            files.append(file)
            targets.add(target)
            advance(1)
    (target,) = targets  # one compiler, one SoC: more would be a bug
    return SocContexts(soc.htp, target.qairt, tuple(files))


def _compile(folder: Path, graph: str, axes: dict[str, int], soc: Soc) -> tuple[ContextFile, BinaryTarget]:
    wrapper = folder / f"{graph}.{soc.name}.{_label(axes)}.onnx"
    options = ort.SessionOptions()
    for axis, size in axes.items():
        options.add_free_dimension_override_by_name(axis, size)
    options.add_session_config_entry("ep.context_enable", "1")
    options.add_session_config_entry("ep.context_file_path", str(wrapper))
    options.add_session_config_entry("ep.context_embed_mode", "0")
    try:
        qnn.open_session(folder / graph_file(graph), options, soc, QnnOptions())
        binary = _binary(wrapper)
        target = read_target(binary)
        require_target(binary, BinaryTarget(soc.name, soc.htp, target.qairt))
    except ExecutionError as error:
        raise ExportError(str(error).replace("use --ep cpu", f"leave {soc.name} out of --soc")) from error
    except BundleError as error:
        raise ExportError(
            f"the compiler wrote another context than was asked for ({error}): use --no-compile"
        ) from error
    return ContextFile(graph, axes, wrapper.name, binary.name), target


def _binary(wrapper: Path) -> Path:
    """Return the binary that a wrapper names; the wrapper is that one node, no part of the graph is beside it."""
    model = onnx.load(wrapper, load_external_data=False)
    names = referenced_files(wrapper.read_bytes())
    if [node.op_type for node in model.graph.node] != ["EPContext"] or len(names) != 1:
        raise BundleError(f"{wrapper.name} is not one graph in one binary")
    return wrapper.with_name(names.pop())


def _label(axes: Mapping[str, int]) -> str:
    """Return the sizes of the axes as text; the total is past and tokens."""
    return "x".join(str(size) for axis, size in axes.items() if axis != "total")
