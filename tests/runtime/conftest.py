"""What the tests of the numerics share: the tiny Llama in the runtime, and the same weights in transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from mobiedit.runtime import open_bundle
from mobiedit.runtime.bundle_layout import TOKENIZER
from mobiedit.runtime.decoder import Decoder
from mobiedit.runtime.manifest import Manifest, read_manifest
from mobiedit.runtime.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def manifest(fp32_bundle: Path) -> Manifest:
    return read_manifest(fp32_bundle)


@pytest.fixture(scope="session")
def decoder(fp32_bundle: Path) -> Decoder:
    """The FP32 bundle's graphs; their outputs are those of `llama_model`, whose text starts with the sink token."""
    return open_bundle(fp32_bundle, verify=False).decoder


@pytest.fixture(scope="session")
def byte_tokenizer(fp32_bundle: Path) -> Tokenizer:
    """The bundle's byte-level tokenizer, as the runtime reads it."""
    return Tokenizer(fp32_bundle / TOKENIZER)


@pytest.fixture(scope="session")
def llama_model(llama: Path) -> LlamaForCausalLM:
    """The checkpoint of `fp32_bundle` in transformers; not to be changed."""
    model = AutoModelForCausalLM.from_pretrained(llama).eval()
    assert isinstance(model, LlamaForCausalLM)
    return model.requires_grad_(False)
