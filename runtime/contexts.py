"""Context binaries in a bundle: graphs in fixed shapes that were compiled for a SoC at export.

ONNX Runtime writes each as two files: a wrapper, an ONNX graph of one ``EPContext`` node, and the binary that this node
names (https://onnxruntime.ai/docs/execution-providers/EP-Context-Design.html).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from reprlib import repr as short

from .bundle_layout import GRAPHS
from .files import check_name
from .manifest_fields import bad, exact, integer, typed

Shapes = dict[str, tuple[dict[str, int], ...]]
"""The fixed shapes of each graph, by its name: sizes by axis."""

AXES = {
    "prefix": {"batch", "tokens", "past", "total"},
    "edit": {"batch", "tokens"},
    "suffix": {"batch", "tokens", "past", "total"},
    "head": {"rows"},
}
"""The symbolic axes of each graph."""

_QAIRT = re.compile(r"\d{1,9}(\.\d{1,9}){2}(\.\d{1,20})?")


@dataclass(frozen=True)
class ContextFile:
    """One graph in one shape.

    Attributes
    ----------
    graph
        Its name.
    axes
        Sizes by axis.
    wrapper, binary
        Names of the two files in the bundle.
    """

    graph: str
    axes: dict[str, int]
    wrapper: str
    binary: str


@dataclass(frozen=True)
class SocContexts:
    """All graphs, compiled for one SoC.

    Attributes
    ----------
    htp
        Architecture of its NPU: 75 is v75.
    qairt
        Version of the compiler, Qualcomm's AI runtime, as the binaries state it: ``2.51.0.260929181845``.
    """

    htp: int
    qairt: str
    files: tuple[ContextFile, ...]

    @property
    def shapes(self) -> Shapes:
        """The shapes that there are."""
        return {graph: tuple(file.axes for file in self.files if file.graph == graph) for graph in GRAPHS}

    def wrapper(self, graph: str, axes: Mapping[str, int]) -> str:
        """Return the file that a session of a graph in one of its shapes is opened from."""
        return next(file.wrapper for file in self.files if (file.graph, file.axes) == (graph, dict(axes)))


def parse_contexts(value: object, listed: Collection[str]) -> dict[str, SocContexts]:
    """Return the contexts of a manifest, by the SoC's name.

    Parameters
    ----------
    listed
        Names of the bundle's files.

    Raises
    ------
    BundleError
        If the value is not exactly that, names a file that is not listed, or leaves a graph out.
    """
    entries = typed(value, dict, "contexts")
    return {soc: _contexts(entry, f"contexts.{short(soc)}", listed) for soc, entry in entries.items()}


def _contexts(value: object, where: str, listed: Collection[str]) -> SocContexts:
    entry = exact(value, where, SocContexts)
    files = tuple(_file(each, f"{where}.files", listed) for each in typed(entry["files"], list, f"{where}.files"))
    if {file.graph for file in files} != set(GRAPHS):
        raise bad(f"{where}.files", f"a context of each graph ({', '.join(GRAPHS)})")
    if not _QAIRT.fullmatch(qairt := typed(entry["qairt"], str, f"{where}.qairt")):
        raise bad(f"{where}.qairt", "a version such as 2.51.0")
    return SocContexts(integer(entry["htp"], f"{where}.htp", 1), qairt, files)


def _file(value: object, where: str, listed: Collection[str]) -> ContextFile:
    entry = exact(value, where, ContextFile)
    graph, given = typed(entry["graph"], str, f"{where}.graph"), typed(entry["axes"], dict, f"{where}.axes")
    axes = {axis: integer(size, f"{where}.axes", 1) for axis, size in given.items()}
    if axes.keys() != AXES.get(graph):
        raise bad(where, "a graph with the sizes of all its axes")
    if "total" in axes and axes["total"] != axes["past"] + axes["tokens"]:
        raise bad(f"{where}.axes", "of a total that is past and tokens")
    names = [check_name(typed(entry[part], str, f"{where}.{part}")) for part in ("wrapper", "binary")]
    if not set(names) <= set(listed):
        raise bad(where, "of files that the bundle lists")
    return ContextFile(graph, axes, *names)
