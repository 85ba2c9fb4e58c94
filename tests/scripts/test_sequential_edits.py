"""Sequences of edits on the tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from mobiedit.runtime import EditRequest, Method, open_bundle
from mobiedit.runtime.edit_set import EditSet
from scripts.sequential_edits import VARIANTS, main
from scripts.support.sequence import Variant

RECORDS = [
    {"prompt": f"The mother tongue of {name} is", "subject": name, "target_new": "old", "ground_truth": "her"}
    | {
        "rephrase_prompt": f"{name} speaks",
        "locality_prompt": "The capital of France is",
        "locality_ground_truth": "the",
    }
    for name in ("Anna Miller", "Danielle Darrieux", "France")
]
FORWARDS = 60  # the tiny model needs hundreds for some targets; none of these tests is about what a search finds


def test_figures_are_told_at_each_count(fp32_bundle: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data.json", tmp_path / "out.json"
    data.write_text(json.dumps(RECORDS))
    words = [str(fp32_bundle), "--data", str(data), "--json", str(out), "--at", "1,2", "--limit", "2"]
    done = CliRunner().invoke(main, [*words, f"--forwards={FORWARDS}", "--variant", "gated", "--variant", "emmet"])
    assert done.exit_code == 0, done.output
    rows = json.loads(out.read_text())["rows"]
    assert [(row["variant"], row["edits"]) for row in rows] == [("gated", 1), ("gated", 2), ("emmet", 1), ("emmet", 2)]
    assert all(row["perplexity"] > 0 and row["forwards"] > 0 for row in rows)


def test_sequence_is_refused_when_there_are_fewer_slots(fp32_bundle: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{**RECORDS[0], "subject": f"Anna {i}", "prompt": f"Anna {i} is"} for i in range(9)]))
    done = CliRunner().invoke(main, [str(fp32_bundle), "--data", str(data), "--json", str(tmp_path / "out.json")])
    assert done.exit_code == 2
    assert "export with --slots 9" in done.output


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_does_what_it_is_called(fp32_bundle: Path, name: str) -> None:
    bundle, variant = open_bundle(fp32_bundle), replace(VARIANTS[name], forwards=FORWARDS)
    empty = EditSet((), bundle.manifest.slots, bundle.manifest.shape)
    edit, forwards = variant.teach(variant.workbench(bundle), EditRequest("The book of {} was", "Anna", "old"), empty)
    assert forwards > 0
    assert (edit.gate is not None) == (variant.method is Method.GATED)
    if variant.bare_denominator:
        assert float(edit.direction @ edit.key) != pytest.approx(1, abs=1e-4)
    else:
        assert float(edit.direction @ edit.key) == pytest.approx(1, abs=1e-4)


def test_anchored_value_has_its_norm_from_before(fp32_bundle: Path) -> None:
    bundle = open_bundle(fp32_bundle)
    empty = EditSet((), bundle.manifest.slots, bundle.manifest.shape)
    request = EditRequest("The book of {} was", "Anna", "old")
    deltas = []
    for anchored in (False, True):
        variant = Variant(Method.ROME, anchored=anchored, forwards=FORWARDS)
        deltas.append(variant.teach(variant.workbench(bundle), request, empty)[0].delta)
    value = bundle.trial(request, variant.workbench(bundle).config)[0]
    before = value.value - value.search.delta
    # v* of both is the same line through the origin; the search is the same, so only its length differs.
    free, bound = before + deltas[0], before + deltas[1]
    assert np.linalg.norm(bound) == pytest.approx(np.linalg.norm(before), rel=1e-3)
    assert float(free @ bound) == pytest.approx(np.linalg.norm(free) * np.linalg.norm(bound), rel=1e-3)
