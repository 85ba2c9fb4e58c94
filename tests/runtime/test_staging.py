"""Edits whose graphs are in memory in turn."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mobiedit.runtime import open_bundle
from mobiedit.runtime import staging as staging_module
from mobiedit.runtime.configuration import EditConfig, ExecutionConfig, ExecutionProvider, PrefixCache, Staging
from mobiedit.runtime.edit_result import EditResult
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.execution import Feeds, Fetched
from mobiedit.runtime.journal_records import EditRecord
from mobiedit.runtime.manifest import FileEntry, Manifest
from mobiedit.runtime.staged_edit import STAGING_BYTES, stages_edits
from mobiedit.runtime.staging import ONE_BY_ONE, STAGES, GraphStages, StagedGraph

ON, OFF, AUTO = (ExecutionConfig(staging=each) for each in (Staging.ON, Staging.OFF, Staging.AUTO))
SHORT = replace(EditConfig(force=True), gauss_newton=replace(EditConfig().gauss_newton, steps=4, directions=4))


class _Noted:
    """A graph that notes how it lives."""

    def __init__(self, name: str, living: set[str]) -> None:
        self.name, self.inputs, self.outputs, self._living = name, ("x",), ("y",), living
        living.add(name)

    def __del__(self) -> None:
        self._living.discard(self.name)

    def run(self, feeds: Feeds, meter: object = None) -> Fetched:
        return {"y": feeds["x"]}

    def placement(self) -> dict[str, int]:
        return {}


def test_one_stage_is_alive_when_graphs_run_in_any_order() -> None:
    living: set[str] = set()
    names = [name for stage in STAGES for name in stage]
    stages = GraphStages({name: lambda name=name: _Noted(name, living) for name in names})
    graphs = {name: StagedGraph(name, f"{name}.onnx", stages) for name in names}
    assert not living
    feeds = {"x": np.zeros(1, np.float32)}
    for name in ("prefix", "edit", "suffix", "head", "suffix", "prefix", "head", "edit"):
        assert graphs[name].inputs == ("x",)
        graphs[name].run(feeds)
        assert living == set(next(stage for stage in STAGES if name in stage))
    assert stages.opened == 6  # suffix and head share one
    stages.close()
    assert not living


def test_graphs_are_alive_alone_when_they_are_staged_one_by_one() -> None:
    living: set[str] = set()
    names = [name for stage in ONE_BY_ONE for name in stage]
    stages = GraphStages({name: lambda name=name: _Noted(name, living) for name in names}, ONE_BY_ONE)
    for name, graph in stages.graphs().items():
        graph.run({"x": np.zeros(1, np.float32)})
        assert living == {name}


def _edited(bundle: Path, folder: Path, execution: ExecutionConfig) -> tuple[EditResult, EditRecord, list[int]]:
    """Edit a copy of a bundle; return also how often stages were opened."""
    opened: list[int] = []

    class Counted(staging_module.GraphStages):
        def close(self) -> None:
            super().close()
            opened.append(self.opened)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mobiedit.runtime.staged_edit.GraphStages", Counted)
        copy = open_bundle(Path(shutil.copytree(bundle, folder)), execution)
        result = copy.edit("The mother tongue of {} is", "Anna", "English", config=SHORT)
    assert ("decoder" in vars(copy)) == (not opened)  # nothing is left open behind a staged edit
    return result, copy.edits()[-1], opened


def test_edit_is_bit_identical_when_it_is_staged(fp32_bundle: Path, tmp_path: Path) -> None:
    staged, staged_record, opened = _edited(fp32_bundle, tmp_path / "on", ON)
    whole, whole_record, never = _edited(fp32_bundle, tmp_path / "off", OFF)
    for name in ("key", "value", "delta", "direction"):
        np.testing.assert_array_equal(getattr(staged_record, name), getattr(whole_record, name))
    assert staged.check == whole.check
    assert (staged.cost.forwards, staged.cost.token_layers) == (whole.cost.forwards, whole.cost.token_layers)
    assert (staged.cost.dispatches, staged.cost.io_bytes) == (whole.cost.dispatches, whole.cost.io_bytes)
    assert (opened[-1], never) == (5, [])  # prefix, edit layer, suffix, and the last two again for the check


def test_answer_keeps_its_graphs_open_when_edits_are_staged(fp32_bundle: Path, tmp_path: Path) -> None:
    opened = open_bundle(Path(shutil.copytree(fp32_bundle, tmp_path / "bundle")), ON)
    opened.ask("Anna speaks", 2)
    assert "decoder" in vars(opened)
    opened.edit("The mother tongue of {} is", "Anna", "English", config=SHORT)
    assert "decoder" not in vars(opened)  # their memory was given up for the edit
    assert opened.ask("Anna speaks", 2) == opened.ask("Anna speaks", 2)


def test_edits_are_staged_when_asked_for_or_graphs_are_large(manifest: Manifest) -> None:
    assert not stages_edits(manifest, AUTO)
    assert stages_edits(manifest, ON)
    entry = FileEntry("0" * 64, STAGING_BYTES)
    large = replace(manifest, files={**manifest.files, "suffix.onnx.data": entry})
    assert stages_edits(large, AUTO)
    assert not stages_edits(large, OFF)
    assert not stages_edits(large, AUTO, EditConfig(prefix_cache=PrefixCache.OFF))
    assert not stages_edits(large, ExecutionConfig(provider=ExecutionProvider.QNN))


def test_staging_is_refused_when_every_step_would_swap_graphs(manifest: Manifest) -> None:
    with pytest.raises(RequestError, match="leave out --prefix-cache off"):
        stages_edits(manifest, ON, EditConfig(prefix_cache=PrefixCache.OFF))
    with pytest.raises(RequestError, match="--staging on is for the CPU"):
        ExecutionConfig(provider=ExecutionProvider.QNN, staging=Staging.ON)
