"""The error of each layer: exact graphs have none, and the files say what was measured."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from mobiedit.export.configuration import ExportConfig, Precision
from mobiedit.export.error_report import LayerError, layer_errors, require_report, write_report
from mobiedit.export.pipeline import export_bundle
from mobiedit.export.progress import Stages
from mobiedit.runtime import open_bundle
from mobiedit.runtime.decoder import Slots
from mobiedit.runtime.errors import ExportError, RequestError
from tests.small_exports import export_small

TEXTS = ((5, 6, 7, 8, 9), (40, 41, 42))


def errors_of(folder: Path, model: object) -> list[LayerError]:
    bundle = open_bundle(folder, verify=False)
    slots = Slots.empty(bundle.manifest.slots, bundle.manifest.shape)
    return layer_errors(bundle.decoder.parts, folder, model, bundle.manifest.sink_token, slots, TEXTS)  # type: ignore[arg-type]


def test_errors_are_those_of_fp32_when_the_graphs_are_exact(fp32_bundle: Path, source_model: object) -> None:
    errors = errors_of(fp32_bundle, source_model)
    assert [each.layer for each in errors] == [0, 1, 2, 3, "head"]
    for each in errors:
        assert each.sqnr_db > 90  # FP32 sums in another order: 1e-5 of the values, 100 dB
        assert each.cosine == pytest.approx(1, abs=1e-6)


def test_errors_are_larger_when_the_graphs_are_quantised(w8a16_bundle: Path, source_model: object) -> None:
    errors = errors_of(w8a16_bundle, source_model)
    assert len(errors) == 5
    for each in errors:
        assert 20 < each.sqnr_db < 70  # 8-bit weights; another layer's stream would have 0 dB or less
        assert 0.99 < each.cosine < 1


@pytest.mark.parametrize("precision", [Precision.W8, Precision.FP16])
def test_report_is_written_whatever_the_precision(
    precision: Precision, llama: Path, fp32_bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "deep" / "report"
    export_small(llama, tmp_path / "bundle", precision, traced=fp32_bundle, report=folder)
    assert sorted(path.name for path in folder.iterdir()) == ["report.json", "report.md", "report.svg"]
    stated = json.loads((folder / "report.json").read_text())
    assert (stated["precision"], stated["rotated"], len(stated["layers"])) == (precision, False, 5)
    assert all(np.isfinite(each["sqnr_db"]) and each["cosine"] > 0.99 for each in stated["layers"])
    assert (folder / "report.svg").read_bytes().lstrip().startswith(b"<?xml")


def test_table_has_a_row_a_layer_when_written(tmp_path: Path) -> None:
    write_report(tmp_path, "w8a8", [LayerError(0, 0.5, 3.25), LayerError("head", 0.25, 1.0)], {})
    rows = (tmp_path / "report.md").read_text().splitlines()[4:]
    assert rows == ["| 0 | 0.500000 | 3.2 |", "| head | 0.250000 | 1.0 |"]


def test_report_is_refused_in_one_line_when_matplotlib_is_missing(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    config = ExportConfig(str(llama), tmp_path / "bundle", layer=1, report=tmp_path / "report")
    with pytest.raises(ExportError, match=r"\Aa report needs matplotlib, [^\n]+\Z"):
        export_bundle(config, Stages(quiet=True))
    assert not list(tmp_path.iterdir())


def test_report_is_refused_when_its_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"is a file: name a folder\Z"):
        require_report(tmp_path / "file")
