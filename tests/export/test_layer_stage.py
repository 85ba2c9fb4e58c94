"""The stages that choose the edit layer: what is measured, and when nothing is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mobiedit.calibration.key_statistics import collect_key_statistics
from mobiedit.calibration.text import default_text
from mobiedit.export import layer_stage
from mobiedit.export.checkpoint import Checkpoint, find_source, load_checkpoint
from mobiedit.export.configuration import ExportConfig
from mobiedit.export.layer_stage import MeasuredLayer, measure_layer, write_key_statistics
from mobiedit.export.pipeline import ROW_PREFIXES
from mobiedit.export.progress import Stages
from mobiedit.runtime.key_statistics import KeyStatistics
from mobiedit.runtime.tokenizer import Tokenizer

SINK = 0
LINES = default_text()[:60]


def measure(folder: Path, layer: int | None) -> tuple[Checkpoint, MeasuredLayer]:
    checkpoint = load_checkpoint(find_source(str(folder)))
    config = ExportConfig(str(folder), folder / "unused", layer=layer, dynamic_multiplier=3.0)
    tokenizer = Tokenizer(folder / "tokenizer.json")
    return checkpoint, measure_layer(checkpoint, tokenizer, SINK, LINES, ROW_PREFIXES, config, Stages(quiet=True))


def assert_statistics_are_the_layers_own(checkpoint: Checkpoint, measured: MeasuredLayer) -> None:
    alone = collect_key_statistics(checkpoint.model, checkpoint.tokenizer, [measured.index], SINK, LINES, 3.0)
    np.testing.assert_array_equal(measured.statistics.inverse_covariance, alone[measured.index].inverse_covariance)


@pytest.fixture
def no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("facts were taught")

    monkeypatch.setattr(layer_stage, "choose_layer", fail)


def test_candidates_are_tried_when_no_layer_is_asked_for(llama: Path) -> None:
    checkpoint, measured = measure(llama, None)
    assert measured.evidence["chosen"] == measured.index
    assert [each["layer"] for each in measured.evidence["candidates"]] == [1, 2]
    assert measured.evidence["facts"] == 16
    assert measured.notes == ()
    assert_statistics_are_the_layers_own(checkpoint, measured)


def test_nothing_is_tried_when_a_layer_is_asked_for(llama: Path, no_trial: None) -> None:
    checkpoint, measured = measure(llama, 2)
    assert (measured.index, measured.evidence) == (2, {"chosen": 2, "asked_for": True})
    assert_statistics_are_the_layers_own(checkpoint, measured)


@pytest.mark.parametrize(("n_layers", "layer"), [(2, 0), (3, 1)])
def test_nothing_is_tried_when_the_model_has_one_candidate(
    n_layers: int, layer: int, make_checkpoint: Callable[..., Path], no_trial: None
) -> None:
    checkpoint, measured = measure(make_checkpoint("llama", num_hidden_layers=n_layers), None)
    assert measured.evidence == {"chosen": layer, "candidates": [], "facts": 0, "seconds": 0.0}
    assert_statistics_are_the_layers_own(checkpoint, measured)


@pytest.mark.parametrize(("limit", "rank"), [(32_000_000, 127), (10_000, 34)])
def test_statistics_are_as_fine_as_the_budget_allows_when_written(
    limit: int, rank: int, llama: Path, tmp_path: Path
) -> None:
    _, measured = measure(llama, 1)
    config = ExportConfig("model", tmp_path / "bundle", key_statistics_bytes=limit)
    stated = write_key_statistics(tmp_path / "s", measured.statistics, config, Stages(quiet=True))
    assert (stated["rank"], stated["bytes"]) == (rank, (tmp_path / "s").stat().st_size)
    assert (stated["keys"], stated["wanted"]) == (384, 384)
    assert stated["bytes"] <= limit
    assert len(KeyStatistics.find(tmp_path / "s").weights) == rank
