"""The plots of a report, as SVG that stands inside a page and takes its ink from it."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray

from ..search import Look
from .report_data import COST_UNITS, Metric, Record, Result
from .summary import SCORES

REACHED = 0.5
"""A search has reached its target once the target's probability is at least this."""

# matplotlib knows no "current colour": this one stands for it until the SVG is written.
_INK = "#0a0b0c"
_STYLE: Any = {  # matplotlib types the names of its settings one by one
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.alpha": 0.2,
    "legend.frameon": False,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), _INK
    ),
}
# Okabe and Ito's palette without black and yellow, which vanish on one of the two backgrounds.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
_DASHES = ("-", "--", ":", "-.")
_WIDTH = 9.0
_LONGEST_NAME = 36


@dataclass(frozen=True)
class Plot:
    """One plot: ``svg`` is empty when no result has what it needs; ``note`` says what is left out."""

    identifier: str
    title: str
    svg: str
    note: str


def draw_plots(results: Sequence[Result]) -> tuple[Plot, ...]:
    """Draw every plot of a report."""
    with mpl.rc_context(_STYLE):
        return (_success(results), _loss(results), _costs(results), _metrics(results))


def compact(value: float, full: float = 1e4) -> str:
    """Return a number in few characters: 0.25, 643, 12k, 1.2M; those below ``full`` keep all their digits."""
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) * 1.0005 >= max(unit, full):  # 999,900 rounds to 1M, not to 1,000k
            return f"{value / unit:.3g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _success(results: Sequence[Result]) -> Plot:
    def draw(axes: Axes, result: Result, style: dict[str, Any]) -> None:
        tried = [record for record in result.records if record.looks or record.error]
        reached = sorted(forwards for record in tried if (forwards := _reached(record)) is not None)
        first, last = _extent(result.records)
        x = [first, *reached, last]
        y = [0.0, *(np.arange(1, len(reached) + 1) / len(tried)), len(reached) / len(tried)]
        axes.step(x, y, where="post", **style)

    def finish(axes: Axes) -> None:
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_ylabel(f"records whose target has reached\na probability of {REACHED}")

    note = "A record that ended with an error counts as not reached."
    return _curves("success", "Success against forwards", results, draw, finish, note)


def _loss(results: Sequence[Result]) -> Plot:
    def draw(axes: Axes, result: Result, style: dict[str, Any]) -> None:
        x = np.unique(np.geomspace(*_extent(result.records), 256))
        losses = np.stack([_held(record.looks, x) for record in result.records if record.looks])
        low, median, high = np.quantile(losses, (0.25, 0.5, 0.75), axis=0)
        axes.fill_between(x, low, high, step="post", color=style["color"], alpha=0.2, linewidth=0)
        axes.step(x, median, where="post", **style)

    def finish(axes: Axes) -> None:
        low, high = axes.dataLim.intervaly
        if 0 < low < high / 30:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(_ticks())
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=min(0.0, low))
        axes.set_ylabel("loss, nats")

    note = "Line: median over the records; band: first to third quartile. A search that has ended keeps its last loss."
    return _curves("loss", "Loss against forwards", results, draw, finish, note)


def _curves(
    identifier: str,
    title: str,
    results: Sequence[Result],
    draw: Callable[[Axes, Result, dict[str, Any]], None],
    finish: Callable[[Axes], None],
    note: str,
) -> Plot:
    """Draw one curve for each result that has looks, over forwards."""
    notes = [note]
    for result in results:
        missing = sum(not record.looks and not record.error for record in result.records)
        if not any(record.looks for record in result.records):
            notes.append(f"Left out: {result.name}, which has no looks.")
        elif missing:
            notes.append(f"{result.name}: {missing} of {len(result.records)} records have no looks and are left out.")
    shown = [(i, result) for i, result in enumerate(results) if any(record.looks for record in result.records)]
    if not shown:
        return Plot(identifier, title, "", "No result has looks at its searches.")
    figure = _figure(3.4, len(shown))
    axes = figure.subplots()
    handles = []
    for i, result in shown:
        style: dict[str, Any] = {"color": _colour(i), "linestyle": _DASHES[i % len(_DASHES)], "linewidth": 1.8}
        draw(axes, result, style)
        handles.append(Line2D([], [], label=_short(result.name), **style))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_ticks())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("forwards")
    axes.grid(visible=True)
    finish(axes)
    figure.legend(handles=handles, loc="outside lower center", ncols=_legend_columns(results), handlelength=3)
    return Plot(identifier, title, _svg(figure, identifier, title), " ".join(notes))


def _costs(results: Sequence[Result]) -> Plot:
    title = "Cost of an edit"
    if not any(result.costs for result in results):
        return Plot("costs", title, "", "No result has costs.")
    figure = Figure(figsize=(_WIDTH, 0.9 + 0.36 * len(results)), layout="constrained")
    panels = figure.subplots(1, len(COST_UNITS), sharey=True)
    for axes, (key, (label, unit)) in zip(panels, COST_UNITS.items(), strict=True):
        spreads = {i: result.costs[key] for i, result in enumerate(results) if key in result.costs}
        bars = {i: (s.median / unit, s.max / unit) for i, s in spreads.items() if s.median > 0}
        _cost_axis(axes, list(bars.values()), logarithmic=key != "peak_rss_bytes")
        for i, (median, largest) in bars.items():
            axes.barh(i, median, height=0.6, color=_colour(i))
            axes.errorbar(median, i, xerr=[[0], [max(0, largest - median)]], color=_INK, capsize=3, linewidth=1)
            axes.annotate(compact(median), (max(median, largest), i), (5, 0), textcoords="offset points", va="center")
        axes.set_xlabel(label)
        axes.grid(visible=True, axis="x")
    panels[0].set_yticks(range(len(results)), [_short(result.name) for result in results])
    panels[0].set_ylim(len(results) - 0.5, -0.5)
    note = "Bar and figure: median over the records; whisker: the maximum. All axes but that of memory are logarithmic."
    return Plot("costs", title, _svg(figure, "costs", title), note)


def _cost_axis(axes: Axes, bars: list[tuple[float, float]], *, logarithmic: bool) -> None:
    """Scale the axis so that the least bar is seen and the figure behind the largest has room."""
    least, largest = min((m for m, _ in bars), default=1.0), max((max(bar) for bar in bars), default=1.0)
    if logarithmic:
        low, high = 10 ** math.floor(math.log10(least / 2)), largest
        axes.set_xscale("log")
        axes.set_xlim(low, high * (high / low) ** 0.6)
        axes.xaxis.set_major_locator(LogLocator(numticks=4))
        axes.xaxis.set_major_formatter(_ticks())
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, largest * 1.5)
        axes.locator_params(axis="x", nbins=3)
        axes.xaxis.set_major_formatter(_ticks(full=1e4))


def _metrics(results: Sequence[Result]) -> Plot:
    title = "Metrics"
    measured = [key for key in SCORES if any(key in result.metrics for result in results)]
    if not measured:
        return Plot("metrics", title, "", "No result has metrics.")
    notes = ["Bar: after the edit, with its 95 % interval; hollow mark: before."]
    if len(measured) < len(SCORES):
        notes.append(f"Not measured: {', '.join(_words(key) for key in SCORES if key not in measured)}.")
    # Fluency is an entropy: it needs an axis of its own.
    shares, entropies = ([key for key in measured if (key == "fluency") is entropy] for entropy in (False, True))
    groups = [keys for keys in (shares, entropies) if keys]
    figure = _figure(3.4, len(results))
    panels = figure.subplots(1, len(groups), squeeze=False, width_ratios=[len(g) + 0.5 for g in groups])[0]
    for axes, keys in zip(panels, groups, strict=True):
        for place, key in enumerate(keys):
            _metric_bars(axes, place, [result.metrics.get(key) for result in results])
        axes.set_xticks(range(len(keys)), [_words(key).replace(" ", "\n") for key in keys])
        axes.set_xlim(-0.6, len(keys) - 0.4)
        axes.grid(visible=True, axis="y")
        if keys is entropies:
            axes.set_ylabel("entropy, bits")
        else:
            axes.set_ylim(0, 1.04)
            axes.yaxis.set_major_formatter(PercentFormatter(1))
            axes.set_ylabel("mean over the records")
    handles = [Patch(color=_colour(i), label=_short(result.name)) for i, result in enumerate(results)]
    figure.legend(handles=handles, loc="outside lower center", ncols=_legend_columns(results))
    return Plot("metrics", title, _svg(figure, "metrics", title), " ".join(notes))


def _metric_bars(axes: Axes, place: int, metrics: Sequence[Metric | None]) -> None:
    """Draw one metric of all results side by side around ``place``."""
    width = 0.8 / len(metrics)
    for i, metric in enumerate(metrics):
        if metric is None:
            continue
        x = place - 0.4 + (i + 0.5) * width
        if metric.post is not None:
            axes.bar(x, metric.post, width * 0.9, color=_colour(i))
            if metric.interval:
                low, high = metric.interval
                axes.vlines(x, low, high, color=_INK, linewidth=1)
                axes.plot([x, x], [low, high], "_", color=_INK, markersize=min(7, 60 * width))
        if metric.pre is not None:
            axes.plot(x, metric.pre, "D", markersize=4, markerfacecolor="none", color=_INK, clip_on=False)


def _reached(record: Record) -> int | None:
    return next((max(1, look.forwards) for look in record.looks if look.target_probability >= REACHED), None)


def _extent(records: Sequence[Record]) -> tuple[int, int]:
    """Return the first and the last number of forwards at which a search was looked at."""
    forwards = [max(1, look.forwards) for record in records for look in record.looks]
    return min(forwards), max(forwards)


def _held(looks: Sequence[Look], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the loss at each ``x``: that of the last look before it."""
    last = np.searchsorted([max(1, look.forwards) for look in looks], x, side="right") - 1
    return np.array([look.loss for look in looks])[np.maximum(last, 0)]


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _ticks(full: float = 1e3) -> FuncFormatter:
    return FuncFormatter(lambda value, _: compact(value, full))


def _words(key: str) -> str:
    return key.replace("_", " ")


def _short(name: str) -> str:
    half = _LONGEST_NAME // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[:half]}…{name[-half:]}"


def _legend_columns(results: Sequence[Result]) -> int:
    longest = max(len(_short(result.name)) for result in results)
    return max(1, min(len(results), 110 // (longest + 9)))


def _figure(height: float, entries: int) -> Figure:
    return Figure(figsize=(_WIDTH, height + 0.1 * entries), layout="constrained")


def _svg(figure: Figure, identifier: str, title: str) -> str:
    """Return the figure as an element of a page, without an identifier that another one of the page could have."""
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": identifier}), warnings.catch_warnings():
        # The text stays text, so that a glyph that matplotlib's own font lacks is no loss.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue()
    svg = re.sub(r'<g id="[^"]*"', "<g", svg[svg.index("<svg") :]).replace(_INK, "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
