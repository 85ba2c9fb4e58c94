"""Rotary factors against transformers, and the mask's truth table."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaRotaryEmbedding, apply_rotary_pos_emb

from mobiedit.runtime.rotary import attention_mask, rotary_factors

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 10000.0}, LLAMA3], ids=["default", "llama3"])
@pytest.mark.parametrize(
    "positions",
    [[[0]], [[0, 1, 2, 3]], [[1, 2, 3], [7, 8, 9]], [[2045, 2046, 2047]], [[5, 0, 5]]],
    ids=["first", "from-start", "rows-with-own-past", "far", "unordered"],
)
def test_rotated_vectors_equal_transformers_when_halves_are_swapped(
    positions: list[list[int]], rope: dict[str, object]
) -> None:
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=2048, rope_parameters=rope)
    embedding = LlamaRotaryEmbedding(config)
    batch, tokens = len(positions), len(positions[0])
    x = torch.randn(batch, 4, tokens, 16, generator=torch.Generator().manual_seed(0))
    wanted, _ = apply_rotary_pos_emb(x, x, *embedding(x, torch.tensor(positions)))
    cos, sin = rotary_factors(np.array(positions), embedding.inv_freq.numpy())
    assert cos.shape == sin.shape == (batch, 1, tokens, 16)
    assert cos.dtype == sin.dtype == np.float32
    swapped = np.roll(x.numpy(), 8, axis=-1)
    # Both take the cosine of the same float32 angle: they differ by roundings of numbers of size 3.
    np.testing.assert_allclose(x.numpy() * cos + swapped * sin, wanted.numpy(), atol=2e-6)


@settings(deadline=None)
@given(data=st.data(), past=st.integers(0, 6), tokens=st.integers(1, 5))
def test_mask_shows_a_row_its_past_and_the_tokens_up_to_its_own_when_pasts_differ(
    data: st.DataObject, past: int, tokens: int
) -> None:
    lengths = data.draw(st.lists(st.integers(0, past), min_size=1, max_size=4))
    mask = attention_mask(np.array(lengths), past, tokens, -100.0)
    assert mask.shape == (len(lengths), 1, tokens, past + tokens)
    assert mask.dtype == np.float32
    for row, length in enumerate(lengths):
        for token in range(tokens):
            seen = {i for i in range(past) if i < length} | {past + i for i in range(token + 1)}
            wanted = [0.0 if i in seen else -100.0 for i in range(past + tokens)]
            assert mask[row, 0, token].tolist() == wanted
