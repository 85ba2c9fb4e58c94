"""The rotation of the residual stream: orthogonal, exact, and what it changes in the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM

from mobiedit.calibration.rotation import hadamard_matrix, named_rotation, rotate_model, rotation

ARCHITECTURES = {
    "llama": {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "mistral": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"tie_word_embeddings": False, "head_dim": 16},
}


@pytest.mark.parametrize("order", [1, 2, 4, 12, 20, 28, 36, 60, 64, 72, 576, 896, 960, 1536])
def test_hadamard_is_orthogonal_when_its_order_is_known(order: int) -> None:
    matrix = hadamard_matrix(order)
    assert matrix is not None
    assert set(np.unique(matrix)) <= {-1.0, 1.0}
    np.testing.assert_array_equal(matrix @ matrix.T, order * np.eye(order))


@pytest.mark.parametrize("order", [3, 6, 92, 100])
def test_hadamard_is_none_when_there_is_no_construction(order: int) -> None:
    assert hadamard_matrix(order) is None
    assert rotation(order, 0)[1] == "random orthogonal"


@given(width=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_rotation_is_orthogonal_whatever_the_width(width: int, seed: int) -> None:
    matrix, _ = rotation(width, seed)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(width), atol=1e-12)  # float64
    np.testing.assert_array_equal(rotation(width, seed)[0], matrix)


def test_rotation_is_another_when_the_seed_is() -> None:
    assert np.abs(rotation(64, 0)[0] - rotation(64, 1)[0]).max() > 0.1


def load(folder: Path) -> nn.Module:
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_stay_when_the_model_is_rotated(architecture: str, make_checkpoint: Callable[..., Path]) -> None:
    model = load(make_checkpoint(architecture, **ARCHITECTURES[architecture]))
    ids = torch.arange(5, 45)[None]
    hidden: list[torch.Tensor] = []
    model.model.layers[1].register_forward_hook(
        lambda _, __, out: hidden.append(out if torch.is_tensor(out) else out[0])
    )
    with torch.no_grad():
        before = model(ids).logits
        name = rotate_model(model, 3)
        after = model(ids).logits
    assert name == "randomised Hadamard, seed 3"
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0)  # FP32 sums in another basis
    turned = hidden[0].double() @ torch.from_numpy(rotation(64, 3)[0])
    torch.testing.assert_close(hidden[1].double(), turned, atol=1e-4, rtol=1e-4)
    assert (hidden[1] - hidden[0]).abs().max() > 0.1  # the stream itself is another one


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_norms_are_folded_when_the_model_is_rotated(architecture: str, make_checkpoint: Callable[..., Path]) -> None:
    model = load(make_checkpoint(architecture, **ARCHITECTURES[architecture]))
    kept = {name: each.clone() for name, each in model.named_parameters() if "q_norm" in name or "k_norm" in name}
    rotate_model(model)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    for name, each in model.named_parameters():
        if name in kept:
            assert torch.equal(each, kept[name])
        elif "norm" in name:
            assert torch.equal(each, torch.ones_like(each))


@pytest.mark.parametrize("width", [64, 88, 30])
def test_rotation_is_found_by_its_name(width: int) -> None:
    matrix, kind = rotation(width, 3)
    found = named_rotation(f"{kind}, seed 3", width)
    assert found is not None
    np.testing.assert_array_equal(found, matrix)


@pytest.mark.parametrize("name", ["", "seed 0", "randomised Hadamard", "randomised Hadamard, seed x", "other, seed 0"])
def test_rotation_is_not_found_when_no_one_is_called_so(name: str) -> None:
    assert named_rotation(name, 64) is None
