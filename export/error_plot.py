"""The plot of the errors behind each layer."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

from .error_report import LayerError

_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "mobiedit", "font.size": 9}


def draw_errors(precision: str, errors: Sequence[LayerError]) -> bytes:
    """Return an SVG with the SQNR and the cosine's distance from 1 over the layers, the head last."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.0, 3.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        places = range(len(errors))
        left.plot(places, [each.sqnr_db for each in errors], marker=".", color="#0072b2")
        left.set_ylabel("SQNR, dB")
        right.plot(places, [max(1 - each.cosine, 1e-9) for each in errors], marker=".", color="#d55e00")
        right.set_yscale("log")
        right.set_ylabel("1 - cosine")
        for axes in (left, right):
            axes.set_xlabel("layer; the last is the head")
            axes.grid(alpha=0.2)
        figure.suptitle(f"{precision} graphs against FP32: residual stream behind each layer")
        page = io.BytesIO()
        figure.savefig(page, format="svg", metadata={"Date": None})
        return page.getvalue()
