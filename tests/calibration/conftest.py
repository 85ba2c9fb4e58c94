"""What the calibration's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="session")
def model(llama: Path) -> nn.Module:
    """The tiny Llama as transformers loads it; not to be changed."""
    loaded: nn.Module = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    return loaded
