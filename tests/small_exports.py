"""Exports of tiny models, with their FP32 graphs traced or, since that is most of an export, taken from a bundle."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mobiedit.export import fp32_stage
from mobiedit.export.configuration import ExportConfig, Precision
from mobiedit.export.pipeline import export_bundle
from mobiedit.export.progress import Stages


def export_small(model: Path, out: Path, precision: Precision, *, traced: Path | None = None, **changes: Any) -> Path:
    """Export a tiny model as the session's bundles are; the FP32 graphs are those of ``traced``, if given."""
    config = ExportConfig(str(model), out, layer=1, precision=precision, slots=3, lens_rows=24, **changes)
    with pytest.MonkeyPatch.context() as patch:
        if traced:
            take_graphs(patch, traced)
        export_bundle(config, Stages(quiet=True))
    return out


def take_graphs(patch: pytest.MonkeyPatch, traced: Path) -> None:
    """Let exports take a bundle's FP32 graphs instead of tracing them."""
    patch.setattr(fp32_stage, "write_graph", lambda spec, path: copy_graph(traced, path))


def copy_graph(bundle: Path, target: Path) -> None:
    """Put a bundle's graph of the same name at a place, with its weights."""
    for path in bundle.glob(f"{target.name}*"):
        shutil.copy(path, target.parent)
