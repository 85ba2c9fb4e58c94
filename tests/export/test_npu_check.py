"""The graphs on the HTP simulator, where its wheel exists."""

import platform
import sys
from pathlib import Path

import pytest

from mobiedit.export.configuration import ExportConfig, Precision, Target
from mobiedit.export.npu_check import MIN_COSINE, compare_on_npu
from mobiedit.export.pipeline import export_bundle
from mobiedit.export.progress import Stages
from mobiedit.runtime.bundle_layout import GRAPHS
from mobiedit.runtime.errors import ExportError

simulator = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="the simulator is in the x86-64 Linux wheel alone"
)


@simulator
def test_every_graph_runs_on_the_simulator_without_the_cpu(w8a16_bundle: Path) -> None:
    cosines = compare_on_npu(w8a16_bundle)
    assert set(cosines) == set(GRAPHS)
    assert min(cosines.values()) >= MIN_COSINE


@simulator
@pytest.mark.usefixtures("written_graphs")
def test_export_for_the_npu_keeps_the_evidence(llama: Path, tmp_path: Path) -> None:
    config = ExportConfig(str(llama), tmp_path / "bundle", layer=1, target=Target.QNN, slots=3, lens_rows=24)
    manifest = export_bundle(config, Stages(quiet=True)).manifest
    assert manifest.target == "qnn"
    assert manifest.precision == Precision.W8A16
    assert set(manifest.checks["npu_cosine"]) == set(GRAPHS)


def test_export_for_the_npu_is_refused_when_the_simulator_is_missing(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobiedit.export.npu_check.qnn.installed", lambda: False)
    config = ExportConfig(str(llama), tmp_path / "bundle", layer=1, target=Target.QNN)
    with pytest.raises(ExportError, match="pip install onnxruntime-qnn"):
        export_bundle(config, Stages(quiet=True))
    assert not (tmp_path / "bundle").exists()
