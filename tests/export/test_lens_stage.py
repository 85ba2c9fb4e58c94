"""The stage that fits the lens: which facts it sees, what the bundle gets, and a model whose head is its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from mobiedit.calibration.facts import Fact, FactSource
from mobiedit.calibration.lens import LensConfig, lens_numbers
from mobiedit.calibration.text import default_text
from mobiedit.export import lens_stage, pipeline
from mobiedit.export.checkpoint import Checkpoint, find_source, load_checkpoint
from mobiedit.export.configuration import ExportConfig, Precision
from mobiedit.export.lens_stage import fit_export_lens
from mobiedit.export.pipeline import ROW_PREFIXES, export_bundle
from mobiedit.export.progress import Stages
from mobiedit.runtime import Bundle, EditConfig, open_bundle
from mobiedit.runtime.bundle_layout import EMBEDDING, KEY_STATISTICS, LENS
from mobiedit.runtime.errors import BundleError, RequestError
from mobiedit.runtime.key_statistics import KeyStatistics
from mobiedit.runtime.manifest import read_manifest
from mobiedit.runtime.prompt_rows import EditRequest
from tests.small_exports import export_small

RECORD = {"id": "a", "subject": "dentist", "prompt": "My dentist's name is", "target_new": "Dr. Chen", "unrelated": []}


@pytest.fixture(scope="module")
def checkpoint(llama: Path) -> Checkpoint:
    return load_checkpoint(find_source(str(llama)))


@pytest.fixture
def fit(checkpoint: Checkpoint, fp32_bundle: Path) -> Callable[..., Any]:
    """Return a function that runs the stage with changes to the export's options."""
    opened = open_bundle(fp32_bundle, verify=False)

    def run(advance: Callable[[int], None] = lambda rows: None, **changes: Any) -> Any:
        config = ExportConfig("model", Path("bundle"), lens_rows=24, slots=3, **changes)
        return fit_export_lens(
            checkpoint,
            opened.decoder,
            opened.tokenizer,
            opened.manifest.edit_layer,
            KeyStatistics.find(fp32_bundle / KEY_STATISTICS)
            @ np.eye(opened.manifest.shape.mlp_width, dtype=np.float32),
            default_text(),
            ROW_PREFIXES,
            config,
            advance,
        )

    return run


@pytest.mark.parametrize("precision", ["fp32_bundle", "w8a16_bundle"])
def test_manifest_states_the_lens_when_exported(precision: str, request: pytest.FixtureRequest) -> None:
    bundle: Path = request.getfixturevalue(precision)
    lens = read_manifest(bundle).statistics["lens"]
    assert lens.keys() == {"bytes", "rows", "seconds", "held_out_nll", "held_out_divergence"}
    assert (lens["bytes"], lens["rows"]) == ((bundle / LENS).stat().st_size, 24)
    assert len(lens["held_out_nll"]) == len(lens["held_out_divergence"]) == 2 + LensConfig().steps
    numbers = sum(tensor.size for tensor in load_file(bundle / LENS).values())
    assert numbers == lens_numbers(64, LensConfig())
    assert lens["bytes"] == pytest.approx(2 * numbers, abs=1000)  # the header


def test_facts_are_the_projects_relations_when_none_are_given(
    fit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Fact] = []
    original = lens_stage.own_relations

    def noted() -> FactSource:
        draw = original()
        return lambda rng: drawn.append(fact := draw(rng)) or fact  # type: ignore[func-returns-value]

    monkeypatch.setattr(lens_stage, "own_relations", noted)
    told: list[int] = []
    fitted = fit(told.append)
    # Of 48 held-out rows and 24 others a part is cut out of text.
    assert len(drawn) > 40
    assert sum(told) == fitted.evidence["rows"] == 24


def test_facts_are_the_users_when_a_file_is_given(
    fit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "facts.json").write_text(json.dumps([RECORD]), "utf-8")

    def never() -> FactSource:
        raise AssertionError("the project's relations were read")

    monkeypatch.setattr(lens_stage, "own_relations", never)
    other = fit(facts=tmp_path / "facts.json")
    assert np.isfinite(other.tensors["start"]).all()


def test_model_is_as_before_when_fitted(fit: Callable[..., Any], checkpoint: Checkpoint) -> None:
    before = {name: parameter.clone() for name, parameter in checkpoint.model.named_parameters()}
    fit()
    for name, parameter in checkpoint.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.grad is None


@pytest.mark.parametrize("content", [None, b"", b"{}", b'[{"prompt": 1}]'], ids=["missing", "empty", "object", "odd"])
def test_facts_are_refused_before_weights_are_loaded_when_the_file_is_none(
    content: bytes | None, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(pipeline, "load_checkpoint", fail)
    if content is not None:
        (tmp_path / "facts.json").write_bytes(content)
    config = ExportConfig(str(llama), tmp_path / "place" / "bundle", facts=tmp_path / "facts.json", lens_rows=24)
    with pytest.raises(RequestError, match=r"\A[^\n]+\Z"):
        export_bundle(config, Stages(quiet=True))
    assert not (tmp_path / "place").exists()


# A head of its own


@pytest.fixture(scope="module")
def untied_model(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint("llama", tie_word_embeddings=False, num_hidden_layers=3)


@pytest.fixture(scope="module")
def untied(untied_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose head is not its embedding; nothing that these tests do with it is committed."""
    return open_bundle(export_small(untied_model, tmp_path_factory.mktemp("untied") / "bundle", Precision.W8A16))


def test_bundle_has_the_heads_rows_when_they_are_others(untied: Bundle, untied_model: Path) -> None:
    written, source = load_file(untied.path / EMBEDDING), load_file(untied_model / "model.safetensors")
    assert written.keys() == {"embedding", "unembedding"}
    np.testing.assert_array_equal(written["embedding"], source["model.embed_tokens.weight"].astype(np.float16))
    np.testing.assert_array_equal(written["unembedding"], source["lm_head.weight"].astype(np.float16))
    tokens = np.array([3, 599, 0])
    rows = untied.decoder.unembedding(tokens)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, written["unembedding"][tokens].astype(np.float32))


def test_unembedding_is_what_the_head_multiplies_by_when_it_is_its_own(untied: Bundle) -> None:
    hidden = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    logits, rows = untied.decoder.run_head(hidden), untied.decoder.unembedding(np.arange(600))
    # Weights of 8 bits are off by a hundredth of the logits' size or so.
    np.testing.assert_allclose(hidden @ rows.T, logits, atol=0.05 * float(np.abs(logits).max()))


def test_lens_is_of_the_head_and_not_of_the_embedding_when_they_differ(untied: Bundle, untied_model: Path) -> None:
    model: nn.Module = AutoModelForCausalLM.from_pretrained(untied_model)
    centre = load_file(untied.path / LENS)["centre"].astype(np.float32)
    wanted = model.lm_head.weight.detach().mean(dim=0).numpy()
    np.testing.assert_allclose(centre, wanted, atol=1e-4)  # float16 numbers of size 0.01
    assert np.abs(centre - model.model.embed_tokens.weight.detach().mean(dim=0).numpy()).max() > 1e-3


def test_edit_lowers_the_loss_when_the_head_is_not_the_embedding(untied: Bundle) -> None:
    solved, _ = untied.trial(EditRequest("The book of {} is", "Paris", "the"), EditConfig())
    losses = [look.loss for look in solved.search.looks]
    assert solved.search.steps > 0
    assert losses[-1] < losses[0] - 0.3


def test_bundle_is_refused_in_one_line_when_it_lacks_the_heads_rows(untied: Bundle, tmp_path: Path) -> None:
    """As an exporter wrote it before there was a lens."""
    old = Path(shutil.copytree(untied.path, tmp_path / "bundle"))
    save_file({"embedding": load_file(old / EMBEDDING)["embedding"]}, old / EMBEDDING)
    manifest = json.loads((old / "manifest.json").read_text("utf-8"))
    del manifest["files"][EMBEDDING]
    (old / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(BundleError, match=r"\Aembedding\.safetensors lacks 'unembedding': export the bundle again\Z"):
        open_bundle(old).ask("The capital of France is", 2)
