"""What the host side's tests share beside the models of all tests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from mobiedit.calibration.activation_ranges import TensorRange
from mobiedit.export import quantise_stage
from mobiedit.runtime.bundle_layout import RANGES
from tests.small_exports import copy_graph, take_graphs


@pytest.fixture(scope="session")
def source_model(llama: Path) -> nn.Module:
    """The tiny Llama as transformers loads it; not to be changed."""
    return AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()


@pytest.fixture
def written_graphs(fp32_bundle: Path, w8a16_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the graphs of the session's bundles instead of writing the same ones again: an export in a second."""

    def copy_static(source: Path, target: Path, *_: object) -> dict[str, TensorRange]:
        copy_graph(w8a16_bundle, target)
        ends = json.loads((w8a16_bundle / RANGES).read_text())["graphs"][target.stem]
        return {name: TensorRange(low, high) for name, (low, high) in ends.items()}

    take_graphs(monkeypatch, fp32_bundle)
    monkeypatch.setattr(quantise_stage, "quantise_static", copy_static)


@pytest.fixture
def contents() -> Callable[[Path], dict[str, str]]:
    """Return a function that gives the hash of every file below a folder, folders included by name."""

    def read(folder: Path) -> dict[str, str]:
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
            for path in sorted(folder.rglob("*"))
        }

    return read


@pytest.fixture(scope="session")
def gguf_file(
    source_model: nn.Module, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny Llama as llama.cpp would store it, in FP32."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    config: Any = source_model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    core = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(core["vocab"], key=core["vocab"].__getitem__))
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(core["vocab"]) - 1))
    writer.add_token_merges([" ".join(pair) for pair in core["merges"]])
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, parameter in source_model.named_parameters():
        values = parameter.detach().numpy()
        if "q_proj" in name or "k_proj" in name:  # llama.cpp rotates neighbours, transformers halves
            heads = len(values) // config.head_dim
            values = values.reshape(heads, 2, config.head_dim // 2, -1).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
