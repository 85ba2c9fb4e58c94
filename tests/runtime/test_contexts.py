"""The manifest's context binaries: read strictly, and given back as they were."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobiedit.runtime.bundle_layout import GRAPHS
from mobiedit.runtime.contexts import AXES, ContextFile, SocContexts, parse_contexts
from mobiedit.runtime.errors import BundleError
from mobiedit.runtime.static_graphs import all_shapes, compiled_shapes

SIZES = st.integers(1, 2000)


@st.composite
def contexts(draw: st.DrawFn) -> SocContexts:
    """One context or more of each graph."""
    files = []
    for graph in GRAPHS:
        for index in range(draw(st.integers(1, 3))):
            axes = {axis: draw(SIZES) for axis in sorted(AXES[graph])}
            if "total" in axes:
                axes["total"] = axes["past"] + axes["tokens"]
            files.append(ContextFile(graph, axes, f"{graph}.{index}.onnx", f"{graph}.{index}_qnn.bin"))
    return SocContexts(draw(st.integers(1, 99)), draw(st.sampled_from(["2.51.0", "2.51.0.260929181845"])), tuple(files))


def names(found: SocContexts) -> set[str]:
    return {name for file in found.files for name in (file.wrapper, file.binary)}


@given(found=contexts())
def test_contexts_are_the_same_when_they_are_read_from_their_json(found: SocContexts) -> None:
    assert parse_contexts(json.loads(json.dumps({"SM8650": asdict(found)})), names(found)) == {"SM8650": found}
    assert {len(sizes) for sizes in found.shapes.values()} <= {1, 2, 3}
    for file in found.files:
        assert found.wrapper(file.graph, file.axes) in {each.wrapper for each in found.files if each.axes == file.axes}


SHAPES = {graph: sizes[0] for graph, sizes in compiled_shapes(7, 256).items()}
EXAMPLE = SocContexts(
    75, "2.51.0", tuple(ContextFile(graph, axes, f"{graph}.onnx", f"{graph}.bin") for graph, axes in SHAPES.items())
)


def put(*path: object) -> Callable[[dict[str, Any]], None]:
    """Return a change: the value at the path's end is replaced by the last of the path."""
    *way, last, value = path

    def change(content: dict[str, Any]) -> None:
        inner: Any = content
        for step in way:
            inner = inner[step]
        inner[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        put("SM8650", []),
        put("SM8650", "extra", 1),
        put("SM8650", "htp", 0),
        put("SM8650", "htp", "75"),
        put("SM8650", "qairt", "new"),
        put("SM8650", "qairt", "2.51"),
        put("SM8650", "qairt", "2.51.0\n"),
        put("SM8650", "files", {}),
        put("SM8650", "files", []),
        put("SM8650", "files", 0, "graph", "suffix"),
        put("SM8650", "files", 0, "graph", "other"),
        put("SM8650", "files", 0, "graph", None),
        put("SM8650", "files", 0, "axes", {}),
        put("SM8650", "files", 0, "axes", "batch", 0),
        put("SM8650", "files", 0, "axes", "batch", 1.0),
        put("SM8650", "files", 0, "axes", "rows", 1),
        put("SM8650", "files", 0, "axes", "total", 9999),
        put("SM8650", "files", 0, "wrapper", "../prefix.onnx"),
        put("SM8650", "files", 0, "wrapper", "unlisted.onnx"),
        put("SM8650", "files", 0, "binary", "unlisted.bin"),
        put("SM8650", "files", 0, "binary", 1),
        lambda content: content["SM8650"].pop("qairt"),
        lambda content: content["SM8650"]["files"].pop(2),
        lambda content: content["SM8650"]["files"][1].pop("binary"),
    ],
)
def test_contexts_are_refused_in_one_line_when_a_value_is_wrong(change: Callable[[dict[str, Any]], None]) -> None:
    content = copy.deepcopy({"SM8650": json.loads(json.dumps(asdict(EXAMPLE)))})
    assert parse_contexts(content, names(EXAMPLE)) == {"SM8650": EXAMPLE}
    change(content)
    with pytest.raises(BundleError) as caught:
        parse_contexts(content, names(EXAMPLE))
    assert len(str(caught.value).splitlines()) == 1


@given(rows=st.integers(1, 20), context=st.integers(2, 5000))
def test_compiled_shapes_hold_what_all_shapes_hold(rows: int, context: int) -> None:
    every, compiled = all_shapes(rows, context), compiled_shapes(rows, context)
    for graph, sizes in compiled.items():
        assert all(axes.keys() == AXES[graph] for axes in sizes)
        assert len({tuple(axes.items()) for axes in sizes}) == len(sizes) <= len(every[graph])
    for graph in ("prefix", "suffix"):
        longest = max(compiled[graph], key=lambda axes: axes["tokens"] * axes["past"])
        assert (longest["tokens"], longest["past"]) == (min(context, 256), min(context, 1024))
        assert {axes["batch"] for axes in compiled[graph]} >= {1, rows}
