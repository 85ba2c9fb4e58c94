"""What the calibration's tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from mobiedit.calibration.fact_rows import FactRunner
from mobiedit.calibration.facts import FactMix, FactSampler, own_relations
from mobiedit.calibration.text import default_text
from mobiedit.export.segment import DecoderSegment
from mobiedit.runtime import open_bundle
from mobiedit.runtime.bundle_layout import KEY_STATISTICS, TOKENIZER
from mobiedit.runtime.decoder import Slots
from mobiedit.runtime.key_statistics import KeyStatistics
from mobiedit.runtime.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def model(llama: Path) -> nn.Module:
    """The tiny Llama as transformers loads it; not to be changed."""
    loaded: nn.Module = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    return loaded


@pytest.fixture(scope="session")
def byte_tokenizer(fp32_bundle: Path) -> Tokenizer:
    """The tiny Llama's tokenizer, as the runtime reads it."""
    return Tokenizer(fp32_bundle / TOKENIZER)


@pytest.fixture(scope="session")
def suffix(llama: Path, fp32_bundle: Path) -> nn.Module:
    """The tiny Llama's layers behind the edit layer in torch, with weights of its own."""
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval().requires_grad_(False)
    manifest = open_bundle(fp32_bundle, verify=False).manifest
    first, layers = manifest.edit_layer + 1, manifest.shape.n_layers
    return DecoderSegment(model.model.layers, first, layers, manifest.shape, final_norm=model.model.norm)


@pytest.fixture(scope="session")
def runner(fp32_bundle: Path, suffix: nn.Module) -> FactRunner:
    """Runs facts through the tiny Llama."""
    opened = open_bundle(fp32_bundle, verify=False)
    inverse = KeyStatistics.find(fp32_bundle / KEY_STATISTICS) @ np.eye(
        opened.manifest.shape.mlp_width, dtype=np.float32
    )
    return FactRunner(opened.decoder, suffix, inverse, Slots.empty(3, opened.manifest.shape))


@pytest.fixture
def sampler(byte_tokenizer: Tokenizer) -> FactSampler:
    """The project's facts as the exporter mixes them."""
    prefixes = ("{}", "In the morning, they talked. {}")
    return FactSampler(byte_tokenizer, own_relations(), default_text()[:80], prefixes, FactMix(), seed=0)
