"""Baking: the checkpoint, or the adapter, computes what the bundle's graphs do with the edits in force."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from mobiedit.export.bake import bake
from mobiedit.export.base_model import weight_files
from mobiedit.export.check import FP32_TOLERANCE
from mobiedit.export.checkpoint import find_source, weights_sha256
from mobiedit.export.configuration import Precision
from mobiedit.export.first_token_key import first_token_key
from mobiedit.export.weight_update import inverse_covariance_of, rotation_of, update_of
from mobiedit.runtime import Bundle, EditConfig, Method, ZerothOrderConfig, open_bundle
from mobiedit.runtime.bundle_layout import EDITS
from mobiedit.runtime.configuration import Optimizer
from mobiedit.runtime.decoder import Slots
from mobiedit.runtime.edit_records import record_of
from mobiedit.runtime.errors import BundleError, ExportError, RequestError
from mobiedit.runtime.journal import Journal
from mobiedit.runtime.journal_records import new_edit_id
from mobiedit.runtime.manifest_fields import MANIFEST_NAME
from mobiedit.runtime.prompt_rows import EditRequest
from mobiedit.runtime.reader import Reader
from tests.small_exports import export_small

Floats = NDArray[np.float32]
FACTS = (
    ("The mother tongue of {} is", "Danielle Darrieux", " English"),
    ("My {}'s name is", "dentist", " Dr. Chen"),
)
TEXTS = (*(prompt.replace("{}", subject) for prompt, subject, _ in FACTS), "The capital of France is Paris.")
QUICK = EditConfig(Optimizer.ZO, Method.EMMET, zeroth_order=ZerothOrderConfig(steps=1, directions=1, check_every=1))
LAYER = 1  # of `export_small`
WEIGHT = f"model.layers.{LAYER}.mlp.down_proj.weight"
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"head_dim": 32, "sliding_window": None},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32},
}


def teach(bundle: Bundle) -> Bundle:
    """Commit each fact's key and direction with a delta that changes what the tiny model says."""
    rng = np.random.default_rng(0)
    for prompt, subject, target in FACTS:
        request = EditRequest(prompt, subject, target)
        solved, _ = bundle.trial(request, QUICK)
        record = record_of(request, solved, solved.result(new_edit_id(), Optimizer.ZO), bundle.manifest)
        delta = rng.standard_normal(record.delta.shape) * np.linalg.norm(record.value) / len(record.delta) ** 0.5
        journal = Journal(bundle.path / EDITS, bundle.manifest.edit_base)
        journal.append_edits((replace(record, delta=delta.astype(np.float32)),))
    return bundle


def rebased(bundle: Path, model: Path, place: Path) -> Bundle:
    """The bundle as if it were exported from another file of the same weights."""
    copy = shutil.copytree(bundle, place)
    manifest = json.loads((copy / MANIFEST_NAME).read_text())
    manifest["base"]["weights_sha256"] = weights_sha256(find_source(str(model)))
    (copy / MANIFEST_NAME).write_text(json.dumps(manifest))
    return teach(open_bundle(copy))


@pytest.fixture(scope="module")
def taught(fp32_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny Llama's bundle with two edits; not to be changed."""
    return teach(open_bundle(shutil.copytree(fp32_bundle, tmp_path_factory.mktemp("taught") / "bundle")))


def logits_of(model: nn.Module, bundle: Bundle, text: str) -> Floats:
    """[T, V] log-probabilities behind each token of a text, the sink token in front."""
    ids = [bundle.manifest.sink_token, *bundle.tokenizer.encode(text).ids]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, 1:]
    return np.asarray(logits.float().log_softmax(-1).numpy())


def load(folder: Path) -> nn.Module:
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model


def spared(bundle: Bundle, base: nn.Module) -> Reader:
    """The bundle's graphs with the edits as they are baked: without effect at the sink token."""
    update = update_of(bundle).sparing(sink_key(bundle, base), inverse_covariance_of(bundle))
    turn = rotation_of(bundle.manifest)
    deltas = update.deltas if turn is None else (update.deltas @ turn).astype(np.float32)
    slots = Slots.empty(bundle.manifest.slots, bundle.manifest.shape)
    for index, (direction, delta) in enumerate(zip(update.directions, deltas, strict=True)):
        slots = slots.with_edit(index, direction, delta)
    return Reader(bundle.decoder, bundle.tokenizer, bundle.manifest, slots)


def sink_key(bundle: Bundle, base: nn.Module) -> Floats:
    """The sink token's key, as the source model itself computes it."""
    seen: list[torch.Tensor] = []
    down = base.model.layers[LAYER].mlp.down_proj
    with torch.no_grad(), down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        base(torch.tensor([[bundle.manifest.sink_token]]))
    return np.asarray(seen[0][0, 0].numpy())


def largest_difference(model: nn.Module, reader: Reader, bundle: Bundle) -> float:
    return max(float(np.abs(logits_of(model, bundle, t) - reader.log_probabilities(t)).max()) for t in TEXTS)


def require_same(model: nn.Module, base: nn.Module, bundle: Bundle) -> None:
    """The model is the bundle with its edits, to the tolerance of an export's own check, and not the base."""
    reader = spared(bundle, base)
    assert largest_difference(model, reader, bundle) < FP32_TOLERANCE
    assert largest_difference(base, reader, bundle) > 10 * FP32_TOLERANCE
    for text in TEXTS[: len(FACTS)]:  # and what is asked is answered as the bundle does, its own slots in force
        assert logits_of(model, bundle, text)[-1].argmax() == bundle.log_probabilities(text)[-1].argmax()


# The same model


@pytest.mark.parametrize("family", ["llama", "qwen2"])  # biases; a tied head: the others' edit layers are alike
def test_checkpoint_and_adapter_are_the_bundle_when_baked_from_rotated(
    family: str, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    model = make_checkpoint(family, **FAMILIES[family])
    bundle = teach(open_bundle(export_small(model, tmp_path / "bundle", Precision.FP32, rotate=True)))
    require_baked_is_bundle(bundle, model, tmp_path)


def test_checkpoint_and_adapter_are_the_bundle_when_baked(taught: Bundle, llama: Path, tmp_path: Path) -> None:
    require_baked_is_bundle(taught, llama, tmp_path)


def require_baked_is_bundle(bundle: Bundle, model: Path, tmp_path: Path) -> None:
    report = bake(bundle, str(model), tmp_path / "baked")
    assert (report.rank, report.weight, report.dtype) == (2, WEIGHT, "float32")
    assert report.rounding < 1e-5  # FP32 adds with 2^-24 of the weight
    base = load(model)
    require_same(load(tmp_path / "baked"), base, bundle)
    bake(bundle, str(model), tmp_path / "adapter", lora=True)
    adapted = peft.PeftModel.from_pretrained(load(model), tmp_path / "adapter").eval()
    require_same(adapted, base, bundle)


def test_all_else_stays_to_the_byte_when_a_folder_is_baked(taught: Bundle, llama: Path, tmp_path: Path) -> None:
    bake(taught, str(llama), tmp_path / "baked")
    assert {path.name for path in (tmp_path / "baked").iterdir()} == {path.name for path in llama.iterdir()}
    for path in llama.iterdir():
        if path.name != "model.safetensors":
            assert (tmp_path / "baked" / path.name).read_bytes() == path.read_bytes()
    before, after = (load_file(folder / "model.safetensors") for folder in (llama, tmp_path / "baked"))
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == [WEIGHT]


def test_answers_are_the_bundles_when_transformers_generates(taught: Bundle, llama: Path, tmp_path: Path) -> None:
    bake(taught, str(llama), tmp_path / "baked")
    model: Any = load(tmp_path / "baked")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "baked")
    for text in TEXTS[: len(FACTS)]:
        ids = torch.tensor([[taught.manifest.sink_token, *tokenizer(text).input_ids]])
        written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
        assert taught.ask(text, max_tokens=3).startswith(tokenizer.decode(written[0, ids.shape[1]])) or (
            int(written[0, ids.shape[1]]) in taught.reader().stops
        )


# Stored otherwise


def test_weight_is_rounded_to_the_checkpoints_precision_when_it_is_half(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    kind, bits = torch.bfloat16, 8
    model = shutil.copytree(make_checkpoint("llama"), tmp_path / "model")
    tensors = {name: tensor.to(kind) for name, tensor in load_file(model / "model.safetensors").items()}
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    bundle = teach(open_bundle(export_small(model, tmp_path / "bundle", Precision.FP32)))
    report = bake(bundle, str(model), tmp_path / "baked")
    assert report.dtype == str(kind).removeprefix("torch.")
    baked = load_file(tmp_path / "baked" / "model.safetensors")
    assert {tensor.dtype for tensor in baked.values()} == {kind}
    update = update_of(bundle)
    update = update.sparing(sink_key(bundle, load(model)), inverse_covariance_of(bundle))
    exact = tensors[WEIGHT].float().numpy() + update.matrix
    # Round to nearest: at most half a unit in the last of `bits` binary places; twice that for FP32's own rounding.
    assert np.all(np.abs(baked[WEIGHT].float().numpy() - exact) <= 2.0**-bits * np.abs(exact) + 2.0**-24)
    assert 0 < report.rounding < 2.0 ** (5 - bits)  # of an edit that is about as large as the weights
    # An output sums 128 products whose errors are 2^-9 of each, at random signs, and three layers follow.
    assert largest_difference(load(tmp_path / "baked"), spared(bundle, load(model)), bundle) < 2.0 ** (5 - bits)


def test_note_tells_what_rounding_takes_when_it_is_much(
    taught: Bundle, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobiedit.export.bake.NOTABLE_ROUNDING", -1.0)
    (note,) = bake(taught, str(llama), tmp_path / "baked").notes
    assert note.startswith("rounding to float32 takes 0.0% of an edit")


def test_shards_stay_when_the_checkpoint_has_several(fp32_bundle: Path, llama: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(model, max_shard_size="200KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(llama / name, model)
    assert len(weight_files(model)) > 2
    bundle = rebased(fp32_bundle, model, tmp_path / "bundle")
    bake(bundle, str(model), tmp_path / "baked")
    changed = [
        path.name for path in model.iterdir() if path.read_bytes() != (tmp_path / "baked" / path.name).read_bytes()
    ]
    index = json.loads((model / "model.safetensors.index.json").read_text())
    assert changed == [index["weight_map"][WEIGHT]]
    require_same(load(tmp_path / "baked"), load(llama), bundle)


def test_gguf_is_dequantised_when_baked(fp32_bundle: Path, gguf_file: Path, tmp_path: Path) -> None:
    bundle = rebased(fp32_bundle, gguf_file, tmp_path / "bundle")
    bake(bundle, str(gguf_file), tmp_path / "baked")
    options = find_source(str(gguf_file)).options
    base = AutoModelForCausalLM.from_pretrained(gguf_file.parent, dtype=torch.float32, **options).eval()
    require_same(load(tmp_path / "baked"), base, bundle)
    assert "quantization_config" not in json.loads((tmp_path / "baked" / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "baked")
    assert tuple(tokenizer(TEXTS[0]).input_ids) == tuple(bundle.tokenizer.encode(TEXTS[0]).ids)
    bake(bundle, str(gguf_file), tmp_path / "adapter", lora=True)
    require_same(peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval(), load_gguf(gguf_file), bundle)


def load_gguf(path: Path) -> nn.Module:
    options = find_source(str(path)).options
    model: nn.Module = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **options).eval()
    return model


def test_other_formats_of_the_weights_are_left_out_when_a_folder_is_baked(
    fp32_bundle: Path, llama: Path, tmp_path: Path
) -> None:
    bundle = teach(open_bundle(shutil.copytree(fp32_bundle, tmp_path / "bundle")))
    model = shutil.copytree(llama, tmp_path / "model")
    (model / "original").mkdir()
    for name in ("pytorch_model.bin", "original/old.pth", ".cache", "original/notes.txt"):
        (model / name).write_text("old")
    report = bake(bundle, str(model), tmp_path / "baked")
    assert sorted(note.split(": ")[1] for note in report.notes) == ["original/old.pth", "pytorch_model.bin"]
    assert not (tmp_path / "baked" / ".cache").exists()
    assert (tmp_path / "baked" / "original" / "notes.txt").read_text() == "old"


# The adapter


def test_adapter_is_the_checkpoint_when_merged(taught: Bundle, llama: Path, tmp_path: Path) -> None:
    for lora, name in ((False, "baked"), (True, "adapter")):
        bake(taught, str(llama), tmp_path / name, lora=lora)
    adapted = peft.PeftModel.from_pretrained(load(llama), tmp_path / "adapter")
    merged, baked = adapted.merge_and_unload().state_dict(), load(tmp_path / "baked").state_dict()
    assert merged.keys() == baked.keys()
    for name, tensor in merged.items():
        # B A and the sum of outer products are added up in another order.
        assert torch.allclose(tensor, baked[name], rtol=1e-5, atol=1e-6), name


def test_adapter_names_its_base_and_the_one_layer(taught: Bundle, llama: Path, tmp_path: Path) -> None:
    report = bake(taught, str(llama), tmp_path / "adapter", lora=True)
    config = peft.PeftConfig.from_pretrained(tmp_path / "adapter")
    assert config.base_model_name_or_path == str(llama)
    assert (config.r, config.lora_alpha, report.rank) == (2, 2, 2)
    assert config.target_modules == {f"model.layers.{LAYER}.mlp.down_proj"}
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


# The sink token


def test_sink_token_is_spared_and_edits_hold_when_baked(taught: Bundle, llama: Path) -> None:
    update = update_of(taught)
    key = sink_key(taught, load(llama))
    spared = update.sparing(key, inverse_covariance_of(taught))
    assert np.abs(update.directions @ key).max() > 1e-3
    # FP32 sums of 128 products.
    np.testing.assert_allclose(spared.directions @ key, 0, atol=1e-5)
    np.testing.assert_allclose(spared.directions @ update.keys.T, update.directions @ update.keys.T, atol=1e-5)


def test_edits_hold_when_two_have_one_key(taught: Bundle, llama: Path) -> None:
    update = update_of(taught)
    twice = replace(update, directions=update.directions[[0, 0]], keys=update.keys[[0, 0]])
    key = sink_key(taught, load(llama))
    spared = twice.sparing(key, inverse_covariance_of(taught))
    np.testing.assert_allclose(spared.directions @ key, 0, atol=1e-5)
    np.testing.assert_allclose(spared.directions @ twice.keys.T, 1, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_first_token_key_is_the_models_own(family: str, make_checkpoint: Callable[..., Path], taught: Bundle) -> None:
    model = load(make_checkpoint(family, **FAMILIES[family]))
    computed = first_token_key(model.state_dict().get, model.config, taught.manifest.sink_token, LAYER)
    np.testing.assert_allclose(computed, sink_key(taught, model), rtol=1e-4, atol=1e-5)


# Refusals


def test_bundle_without_edits_is_refused(bundle: Bundle, llama: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has no edits in force, there is nothing to bake"):
        bake(bundle, str(llama), tmp_path / "baked")
    assert not (tmp_path / "baked").exists()


@pytest.mark.parametrize("lora", [False, True])
def test_another_checkpoint_is_refused(
    lora: bool, taught: Bundle, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    other = make_checkpoint("llama", tie_word_embeddings=True, initializer_range=0.1)
    with pytest.raises(ExportError, match=r"is not the checkpoint that the bundle was exported from, .*: its weight"):
        bake(taught, str(other), tmp_path / "place" / "baked", lora=lora)
    assert not list((tmp_path / "place").iterdir())


def test_checkpoint_is_refused_when_the_edit_layer_is_another(
    taught: Bundle, make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobiedit.export.bake.require_base", lambda *_: None)
    other = make_checkpoint("llama", tie_word_embeddings=True, initializer_range=0.1)
    with pytest.raises(ExportError, match="is not layer 1 of the checkpoint: export the bundle again"):
        bake(taught, str(other), tmp_path / "place" / "baked")
    assert not list((tmp_path / "place").iterdir())


def test_rotation_is_refused_when_it_is_not_known(bundle: Bundle, llama: Path, tmp_path: Path) -> None:
    for name in ("randomised Hadamard, seed x", "seed 0", "other, seed 0", ""):
        statistics = {**bundle.manifest.statistics, "rotation": {"name": name}}
        with pytest.raises(BundleError, match="is not known here"):
            rotation_of(replace(bundle.manifest, statistics=statistics))


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")])
def test_place_is_refused_when_it_is_taken(
    make: Callable[[Path], object], taught: Bundle, llama: Path, tmp_path: Path
) -> None:
    make(tmp_path / "baked")
    with pytest.raises(ExportError, match="exists: give another place"):
        bake(taught, str(llama), tmp_path / "baked")
    assert [path.name for path in tmp_path.iterdir()] == ["baked"]


def test_nothing_is_left_when_writing_fails(
    taught: Bundle, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mobiedit.export.stored_tensor.StoredTensor.write", fail)
    with pytest.raises(KeyboardInterrupt):
        bake(taught, str(llama), tmp_path / "baked")
    assert not list(tmp_path.iterdir())
