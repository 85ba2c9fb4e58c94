"""Peak memory predicted from a manifest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mobiedit.runtime.bundle_layout import GRAPHS
from mobiedit.runtime.configuration import ExecutionConfig, Staging
from mobiedit.runtime.manifest import FileEntry, Manifest
from mobiedit.runtime.memory_plan import memory_warning, predicted_peaks

ON, OFF = (ExecutionConfig(staging=each) for each in (Staging.ON, Staging.OFF))
GRAPH = 10**9


@pytest.fixture
def large(manifest: Manifest) -> Manifest:
    """The tiny bundle with graphs of a gigabyte each."""
    files = {f"{name}.onnx.data": FileEntry("0" * 64, GRAPH) for name in GRAPHS}
    return replace(manifest, files={**manifest.files, **files})


def test_staged_edit_takes_less_than_an_answer_when_graphs_are_large(large: Manifest) -> None:
    staged, whole = predicted_peaks(large, ON), predicted_peaks(large, OFF)
    assert staged["ask"] == whole["ask"] < whole["edit"]
    assert whole["edit"] - staged["edit"] == pytest.approx(2 * 1.02 * GRAPH, rel=1e-3)  # prefix and edit layer


def test_prediction_follows_the_precision_when_files_are_the_same(large: Manifest) -> None:
    edits = {name: predicted_peaks(replace(large, precision=name), ON)["edit"] for name in ("w4", "w8", "w8a16")}
    assert edits["w4"] < edits["w8"] < edits["w8a16"]


def test_prediction_grows_when_one_of_its_parts_does(manifest: Manifest) -> None:
    before = predicted_peaks(manifest, OFF)["edit"]
    sizes = ("vocabulary", "mlp_width", "width", "n_kv_heads")
    for name in sizes:
        shape = replace(manifest.shape, **{name: 4 * getattr(manifest.shape, name)})
        assert predicted_peaks(replace(manifest, shape=shape), OFF)["edit"] > before


@pytest.mark.parametrize(
    ("table", "warns"),
    [
        ("MemTotal: 9 kB\nMemAvailable:  1000000 kB\n", False),
        ("MemTotal: 9 kB\nMemAvailable:  1000 kB\n", True),
        ("MemTotal: 9 kB\n", False),
        ("nonsense", False),
        (None, False),
    ],
)
def test_warning_is_given_when_less_is_free_than_predicted(table: str | None, warns: bool, tmp_path: Path) -> None:
    if table is not None:
        (tmp_path / "meminfo").write_text(table)
    line = memory_warning(5 * 10**8, tmp_path / "meminfo")
    assert (line is not None) == warns
    if line:
        assert "0.5 GB" in line
        assert "\n" not in line
