"""Tiny real models: transformers' own classes with random weights, exported by the real exporter."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

# torch's idle threads spin; on a busy two-core machine that multiplies every test's time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from mobiedit.export.configuration import Precision
from mobiedit.runtime import Bundle, open_bundle
from scripts.support.byte_level import train_tokenizer
from tests.small_exports import export_small

VOCABULARY = 600
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "vocab_size": VOCABULARY,
    "initializer_range": 0.15,  # wide enough for distributions that are not flat
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the project's sentences."""
    return train_tokenizer(VOCABULARY)


@pytest.fixture(scope="session")
def make_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> Callable[..., Path]:
    """Return a function that writes a random checkpoint of a model type, with changes to its configuration."""

    def make(model_type: str, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp(model_type) / "model"
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, **{**SHAPE, **changes})
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):  # ones and zeros would hide a norm or bias that is not exported
                torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.1)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def llama(make_checkpoint: Callable[..., Path]) -> Path:
    """A tiny Llama checkpoint."""
    return make_checkpoint("llama", tie_word_embeddings=True)


@pytest.fixture(scope="session")
def fp32_bundle(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama as an FP32 bundle; not to be changed."""
    return export_small(llama, tmp_path_factory.mktemp("fp32") / "bundle", Precision.FP32)


@pytest.fixture(scope="session")
def w8a16_bundle(llama: Path, fp32_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama as a w8a16 bundle; not to be changed."""
    return export_small(llama, tmp_path_factory.mktemp("w8a16") / "bundle", Precision.W8A16, traced=fp32_bundle)


@pytest.fixture
def bundle_path(fp32_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the FP32 bundle that a test may change."""
    return Path(shutil.copytree(fp32_bundle, tmp_path / "bundle"))


@pytest.fixture
def bundle(bundle_path: Path) -> Bundle:
    """An open FP32 bundle that a test may edit."""
    return open_bundle(bundle_path)
