"""Greedy generation against transformers' own, and where it ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LlamaForCausalLM

from mobiedit.runtime.decoder import Decoder, Slots
from mobiedit.runtime.generation import Generator
from mobiedit.runtime.manifest import Manifest

PROMPTS = [[5], [328, 353, 83], list(range(40, 90)), np.random.default_rng(0).integers(1, 600, 30).tolist()]
LIMIT = 12


@pytest.fixture(scope="module")
def generator(decoder: Decoder, manifest: Manifest) -> Generator:
    return Generator(decoder, Slots.empty(manifest.slots, manifest.shape))


@pytest.fixture(scope="module")
def edited(decoder: Decoder, manifest: Manifest) -> Generator:
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(manifest.shape.mlp_width).astype(np.float32)
    delta = rng.standard_normal(manifest.shape.width).astype(np.float32)
    return Generator(decoder, Slots.empty(manifest.slots, manifest.shape).with_edit(0, direction, delta))


@pytest.mark.parametrize("ids", PROMPTS, ids=lambda ids: f"{len(ids)}-tokens")
def test_tokens_equal_transformers_generate_when_it_is_greedy(
    ids: list[int], generator: Generator, llama_model: LlamaForCausalLM, manifest: Manifest
) -> None:
    text = torch.tensor([[manifest.sink_token, *ids]])
    config = GenerationConfig(max_new_tokens=LIMIT, do_sample=False)
    output = llama_model.generate(text, attention_mask=torch.ones_like(text), generation_config=config)
    assert isinstance(output, torch.Tensor)
    assert list(generator.tokens(ids, LIMIT)) == output[0, text.shape[1] :].tolist()


@pytest.mark.parametrize("ids", PROMPTS, ids=lambda ids: f"{len(ids)}-tokens")
def test_tokens_equal_the_uncached_argmax_when_an_edit_is_in_force(
    ids: list[int], edited: Generator, generator: Generator
) -> None:
    wanted: list[int] = []
    for _ in range(LIMIT):
        wanted.append(int(edited.all_logits([*ids, *wanted])[-1].argmax()))
    assert list(edited.tokens(ids, LIMIT)) == wanted
    assert list(generator.tokens(ids, LIMIT)) != wanted


@pytest.mark.parametrize("place", [0, 3, LIMIT - 1])
def test_tokens_end_before_the_first_stop_when_one_is_the_most_probable(place: int, generator: Generator) -> None:
    free = list(generator.tokens(PROMPTS[1], LIMIT))
    stop = free[place]
    assert list(generator.tokens(PROMPTS[1], LIMIT, (599, stop))) == free[: free.index(stop)]


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_tokens_end_at_the_limit_when_no_stop_comes(limit: int, generator: Generator) -> None:
    free = list(generator.tokens(PROMPTS[2], LIMIT))
    assert len(free) == LIMIT
    assert list(generator.tokens(PROMPTS[2], limit)) == free[:limit]


def test_next_logits_are_the_last_of_all_logits_when_the_text_is_the_same(edited: Generator) -> None:
    every = edited.all_logits(PROMPTS[3])
    assert every.shape == (len(PROMPTS[3]), 600)
    # The head sums one row in another order than thirty.
    np.testing.assert_allclose(edited.next_logits(PROMPTS[3]), every[-1], atol=1e-4)
