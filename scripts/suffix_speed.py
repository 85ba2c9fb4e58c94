"""Time of one forward of the suffix: each bundle on the CPU provider against the same layers in torch, FP32.

Usage: python -m scripts.suffix_speed BUNDLE... --model smollm2-135m

All take the same inputs (held-out text behind the sink token, through the layers below) with the same number of
threads. They run in turns, so that a machine that gets busier meets all of them alike; a round gives one ratio a
bundle. The processor's time is compared as well, which other processes hardly touch. Graphs are opened as an edit opens
them: the static 8-bit weights of w8a16 are dequantised once.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from pathlib import Path

import click
import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from mobiedit.calibration.text import held_out_text
from mobiedit.export.npu_check import cosine
from mobiedit.runtime import Bundle, ExecutionConfig, open_bundle
from mobiedit.runtime.cli_support import CONTEXT_SETTINGS, ErrorCommand
from mobiedit.runtime.decoder import Floats
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.execution import Feeds
from mobiedit.runtime.files import require_place, write_atomic
from scripts.support.bench_options import model_option
from scripts.support.command_line import arguments_of
from scripts.support.host_model import HostModel
from scripts.support.tables import Cell, markdown_table

GOALS = {"w8": 0.6, "w8a16": 1.5}
"""Largest time as a multiple of torch's, by precision."""

_WARM_UP = 2
_QUARTILES = (25, 50, 75)


@dataclass(frozen=True)
class Shape:
    """So many tokens in each of so many rows."""

    rows: int
    tokens: int

    @staticmethod
    def of(text: str) -> Shape:
        """Read a shape as the command line has it: ``8x16``."""
        if not (found := re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text.strip())):
            raise RequestError(f"{text!r} is no shape: write rows and tokens, as 8x16")
        return Shape(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.rows}x{self.tokens}"


@dataclass(frozen=True)
class Contender:
    """A way to run the suffix: feeds in, hidden states [B, T, D] out."""

    name: str
    precision: str
    run: Callable[[Feeds], Floats]


@dataclass(frozen=True)
class Times:
    """Seconds [contenders, rounds] of single forwards: as they passed, and as the processor's cores spent them."""

    wall: NDArray[np.float64]
    processor: NDArray[np.float64]

    @staticmethod
    def empty(contenders: int, rounds: int) -> Times:
        """Return times to be filled in."""
        return Times(np.zeros((contenders, rounds)), np.zeros((contenders, rounds)))


@click.command(cls=ErrorCommand, context_settings=CONTEXT_SETTINGS)
@click.argument("bundles", type=click.Path(path_type=Path), nargs=-1, required=True)
@model_option
@click.option("--shapes", default="8x16,8x8,1x16,56x6", help="Rows x tokens of the forwards.")
@click.option("--repeats", type=click.IntRange(1), default=40, help="Rounds.")
@click.option("--threads", type=click.IntRange(1), default=2, help="Of torch, and of a graph.")
@click.option("--json", "out", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows, and every time.")
def main(bundles: tuple[Path, ...], model: str, shapes: str, repeats: int, threads: int, out: Path | None) -> None:
    """Time the suffix of BUNDLES against torch FP32."""
    wanted = [Shape.of(text) for text in shapes.split(",")]
    if out:
        require_place(out)
    opened = _open(bundles, threads)
    torch.set_num_threads(threads)
    host = HostModel.load(opened[0], model)
    contenders = [Contender("torch", "fp32", lambda feeds: _in_torch(host, feeds))]
    contenders += [_contender(bundle) for bundle in opened]
    rows: list[dict[str, Cell]] = []
    measured: dict[str, dict[str, list[float]]] = {}
    for shape in wanted:
        feeds = inputs(opened[0], host, shape)
        times = time_in_turns(contenders, feeds, repeats, str(shape))
        measured[str(shape)] = {each.name: list(wall) for each, wall in zip(contenders, times.wall, strict=True)}
        rows += rows_of(shape, contenders, times, [each.run(feeds) for each in contenders])
    command = f"python -m scripts.suffix_speed {arguments_of(click.get_current_context())}"
    click.echo(markdown_table(rows))
    if out:
        versions = {"torch": torch.__version__, "onnxruntime": ort.__version__}
        settings = {"edit_layer": opened[0].manifest.edit_layer, "threads": threads, "repeats": repeats, **versions}
        document = {"command": command, "settings": settings, "rows": rows, "seconds": measured}
        write_atomic(out, json.dumps(document, indent=1, allow_nan=False).encode(), mode=None)


def inputs(bundle: Bundle, host: HostModel, shape: Shape) -> Feeds:
    """Return what the suffix is fed: held-out text in rows of equal length, each from the start of a line on.

    The sink token alone stands in front of it.
    """
    lines = [bundle.tokenizer.encode(line).ids for line in held_out_text()]
    firsts = (row % len(lines) for row in range(shape.rows))
    rows = [list(islice(cycle(chain(*lines[first:], *lines[:first])), shape.tokens)) for first in firsts]
    ids = np.array(rows, np.int64)
    with torch.inference_mode():
        hidden = host.hidden(ids).numpy()
    _, cache = bundle.decoder.sink_caches(shape.rows)
    values = (hidden, *bundle.decoder.segment_inputs(cache, shape.tokens))
    return dict(zip(bundle.decoder.parts.suffix.inputs, values, strict=True))


def time_in_turns(contenders: Sequence[Contender], feeds: Feeds, repeats: int, title: str) -> Times:
    """Run one forward of each in turns; the first rounds do not count."""
    times = Times.empty(len(contenders), _WARM_UP + repeats)
    for turn in tqdm(range(_WARM_UP + repeats), desc=title, leave=False):
        for index, contender in enumerate(contenders):
            wall, processor = time.perf_counter(), time.process_time()
            contender.run(feeds)
            times.processor[index, turn] = time.process_time() - processor
            times.wall[index, turn] = time.perf_counter() - wall
    return Times(times.wall[:, _WARM_UP:], times.processor[:, _WARM_UP:])


def rows_of(
    shape: Shape, contenders: Sequence[Contender], times: Times, outputs: Sequence[Floats]
) -> list[dict[str, Cell]]:
    """Return a row a contender but the first, which the others are compared with.

    A ratio is the median of the rounds'; the cosine says that all compute the same.
    """
    rows: list[dict[str, Cell]] = []
    wall = times.wall / times.wall[0]
    processor = times.processor / times.processor[0]
    for index, contender in enumerate(contenders[1:], 1):
        low, ratio, high = np.percentile(wall[index], _QUARTILES)
        goal = GOALS.get(contender.precision)
        rows.append(
            {
                "rows x tokens": str(shape),
                "bundle": contender.name,
                "precision": contender.precision,
                "torch_ms": round(1e3 * float(np.median(times.wall[0])), 1),
                "ms": round(1e3 * float(np.median(times.wall[index])), 1),
                "ratio": round(float(ratio), 3),
                "quartiles": f"{low:.2f} to {high:.2f}",
                "processor_ratio": round(float(np.median(processor[index])), 3),
                "goal": goal,
                "reached": None if goal is None else bool(ratio <= goal),
                "cosine": cosine(outputs[index], outputs[0]),
            }
        )
    return rows


def _open(paths: Sequence[Path], threads: int) -> list[Bundle]:
    """Open bundles of one source model and one edit layer."""
    opened = [open_bundle(path, ExecutionConfig(threads)) for path in paths]
    first = opened[0].manifest
    for bundle in opened[1:]:
        if bundle.manifest.edit_base != first.edit_base:
            raise RequestError(
                f"{bundle.path} has another source model or edit layer than {paths[0]}: compare bundles that differ "
                "in precision alone"
            )
    return opened


def _contender(bundle: Bundle) -> Contender:
    graph = bundle.decoder.parts.suffix
    return Contender(bundle.path.name, bundle.manifest.precision, lambda feeds: graph.run(feeds)[graph.outputs[0]])


@torch.inference_mode()
def _in_torch(host: HostModel, feeds: Feeds) -> Floats:
    values: list[Tensor] = [torch.from_numpy(value) for value in feeds.values()]
    return np.asarray(host.suffix(*values)[0].numpy())


if __name__ == "__main__":
    main()
