"""Checkpoints with random weights: what transformers and the exporter make of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM

from mobiedit.export.configuration import ExportConfig, Precision
from mobiedit.export.pipeline import export_bundle
from mobiedit.export.progress import Stages
from mobiedit.runtime import open_bundle
from scripts.make_checkpoint import SHAPES, main, write_checkpoint
from scripts.support.byte_level import END

TINY = SHAPES["tiny"]
SHARD = 100_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in several shards; not to be changed."""
    out = tmp_path_factory.mktemp("checkpoint") / "model"
    write_checkpoint(TINY, out, 0, SHARD)
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> Qwen2ForCausalLM:
    loaded, told = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(told.values()), told  # keys that are missing, not expected, or of another shape
    assert isinstance(loaded, Qwen2ForCausalLM)
    return loaded


def test_model_is_tied_and_in_bfloat16_when_transformers_loads_it(model: Qwen2ForCausalLM) -> None:
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_scales_are_as_stated_when_weights_are_drawn(model: Qwen2ForCausalLM) -> None:
    """Standard deviations of 4,096 numbers and more are within 5 % of theirs: four of their own standard errors."""
    layer = model.model.layers[1]
    plain, residual = TINY.width**-0.5, (TINY.width * 2 * TINY.layers) ** -0.5
    expected = {
        layer.self_attn.q_proj.weight: plain,
        layer.mlp.up_proj.weight: plain,
        layer.self_attn.o_proj.weight: residual,
        layer.mlp.down_proj.weight: residual,
    }
    for weight, std in expected.items():
        assert weight.float().std().item() == pytest.approx(std, rel=0.05)
        assert weight.float().mean().item() == pytest.approx(0, abs=0.06 * std)
    norms = torch.cat([p.flatten() for name, p in model.named_parameters() if "norm" in name]).float()
    assert (norms.mean().item(), norms.std().item()) == (pytest.approx(1, abs=0.02), pytest.approx(0.1, rel=0.15))
    assert layer.self_attn.k_proj.bias.any()


def test_shards_hold_what_the_index_says_when_there_are_several(folder: Path, model: Qwen2ForCausalLM) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
    held = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        held |= dict.fromkeys(tensors, path.name)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= SHARD
    assert held == index["weight_map"]
    assert set(held) == {name for name, _ in model.named_parameters()}
    assert len(set(held.values())) > 2
    assert index["metadata"]["total_size"] == sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.parametrize(("seed", "same"), [(0, True), (1, False)])
def test_weights_are_the_same_when_the_seed_is(seed: int, same: bool, folder: Path, tmp_path: Path) -> None:
    write_checkpoint(TINY, tmp_path / "model", seed, SHARD)
    for path in folder.glob("*.safetensors"):
        assert (path.read_bytes() == (tmp_path / "model" / path.name).read_bytes()) is same


def test_tokenizer_gives_text_back_when_transformers_loads_it(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.is_fast, tokenizer.eos_token, tokenizer.eos_token_id) == (True, END, 0)
    text = "Rose Tremain writes in Französisch."
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer) <= TINY.vocabulary


def test_bundle_can_be_asked_when_the_checkpoint_is_exported(folder: Path, tmp_path: Path) -> None:
    config = ExportConfig(str(folder), tmp_path / "bundle", layer=1, precision=Precision.W8, slots=2, lens_rows=24)
    manifest = export_bundle(config, Stages(quiet=True)).manifest
    assert (manifest.base.architecture, manifest.eos_tokens, manifest.shape.tied_head) == ("qwen2", (0,), True)
    assert open_bundle(tmp_path / "bundle").ask("The capital of France is", 2)


@pytest.mark.parametrize(("name", "parameters"), [("qwen2.5-3b", 3_085_938_688), ("qwen2.5-1.5b", 1_543_714_304)])
def test_shape_has_the_size_of_the_model_that_it_is_named_after(name: str, parameters: int) -> None:
    """The published models have these numbers of parameters, head and embedding counted once."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(SHAPES[name].config())
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model.config.hidden_size // model.config.num_attention_heads == 128


def test_command_writes_nothing_when_the_place_is_taken_or_missing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    for place, told in (("taken", "exists: choose another folder"), ("no/model", "is missing: create it")):
        done = CliRunner().invoke(main, ["tiny", "--out", str(tmp_path / place)])
        assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert told in done.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["taken"]


def test_command_writes_the_shape_when_it_is_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["tiny", "--out", str(tmp_path / "model")])
    assert done.exit_code == 0, done.output
    assert "tiny, 0.00 GB of weights" in done.output
    assert {path.name for path in tmp_path.iterdir()} == {"model"}
