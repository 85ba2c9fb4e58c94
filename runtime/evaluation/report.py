"""The report: one HTML page that needs no network and no other file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from .report_data import COST_UNITS, Metric, Record, Result, Spread
from .report_plots import draw_plots
from .summary import COSTS, SCORES

EXAMPLES = 20
"""Records of each result that the page shows one by one, failed ones first."""

_MISSING = "–"  # noqa: RUF001 - a dash


def render(results: Sequence[Result]) -> str:
    """Return the page for results, the plots in it."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["token"] = _token
    template = environment.from_string(Path(__file__).with_name("report.html").read_text("utf-8"))
    settings = _table([result.settings for result in results])
    return template.render(
        results=results,
        settings={name: cells for name, cells in settings.items() if "." not in name},
        details={name: cells for name, cells in settings.items() if "." in name},
        further=_table([result.further for result in results]),
        metrics={key.replace("_", " "): [_metric(result.metrics.get(key)) for result in results] for key in SCORES},
        costs={COST_UNITS[key][0]: [_cost(key, result.costs.get(key)) for result in results] for key in COSTS},
        plots=draw_plots(results),
        examples=[(result, _examples(result)) for result in results],
        missing=_MISSING,
    )


def _examples(result: Result) -> list[Record]:
    return sorted(result.records, key=lambda record: not record.failed)[:EXAMPLES]


def _table(columns: Sequence[dict[str, str]]) -> dict[str, list[str]]:
    """Return rows by name, each with one cell a column, in the order of first appearance."""
    names = dict.fromkeys(name for column in columns for name in column)
    return {name: [column.get(name, _MISSING) for column in columns] for name in names}


def _metric(metric: Metric | None) -> str:
    if metric is None:
        return _MISSING
    pre, post = (_MISSING if value is None else f"{value:.3f}" for value in (metric.pre, metric.post))
    interval = f" [{metric.interval[0]:.3f}, {metric.interval[1]:.3f}]" if metric.interval else ""
    return f"{pre} → {post}{interval}"


def _cost(key: str, spread: Spread | None) -> str:
    if spread is None:
        return _MISSING
    unit, form = COST_UNITS[key][1], "{:,.1f}" if key == "wall_s" else "{:,.0f}"
    return f"{form.format(spread.median / unit)} (max {form.format(spread.max / unit)})"


def _token(text: str) -> str:
    """Return a token's text with its line breaks visible."""
    return text.replace("\n", "↵")
