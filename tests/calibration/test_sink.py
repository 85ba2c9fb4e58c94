"""Which token stands in front of every text, and its K and V."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from mobiedit.calibration.sink import choose_sink, sink_cache
from mobiedit.calibration.text import default_text

LINES = default_text()[:6]
VOCABULARY = 600


class Reader(nn.Module):
    """Knows each next token behind one sink, and nothing behind any other."""

    def __init__(self, good: int, probability: float = 0.5) -> None:
        super().__init__()
        self.good = good
        self.gain = math.log(probability / (1 - probability) * (VOCABULARY - 1))

    def forward(self, ids: Tensor) -> Any:
        logits = torch.zeros(*ids.shape, VOCABULARY)
        if ids[0, 0] == self.good:
            logits[:, :-1].scatter_(-1, ids[:, 1:, None], self.gain)
        return SimpleNamespace(logits=logits)


class Unread(nn.Module):
    def forward(self, ids: Tensor) -> Any:
        raise AssertionError("the model was run")


@pytest.fixture
def with_candidates(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer with three special tokens; 0 is the end of text."""
    changed = copy.deepcopy(tokenizer)
    changed.bos_token, changed.pad_token = "Z", "~"
    return changed


@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id", "pad_token_id"])
def test_sink_is_the_candidate_with_the_lowest_nll_when_models_differ(
    name: str, with_candidates: PreTrainedTokenizerFast
) -> None:
    good: int = getattr(with_candidates, name)
    choice = choose_sink(Reader(good), with_candidates, LINES)
    assert choice.token == good
    others = {with_candidates.bos_token_id, with_candidates.pad_token_id, 0} - {good}
    # Rounded to four places: certainty of a half, and no idea of 600 tokens.
    expected = {str(good): math.log(2), **{str(other): math.log(VOCABULARY) for other in others}}
    assert choice.evidence == pytest.approx(expected, abs=1e-4)
    assert len(choice.evidence) == 3


def test_token_0_is_a_candidate_when_tokenizer_has_another_end(with_candidates: PreTrainedTokenizerFast) -> None:
    with_candidates.eos_token = "Q"
    assert choose_sink(Reader(0), with_candidates, LINES).token == 0


def test_evidence_is_the_models_nll_behind_the_first_word_when_read(
    model: nn.Module, with_candidates: PreTrainedTokenizerFast
) -> None:
    choice = choose_sink(model, with_candidates, LINES)
    assert len(choice.evidence) == 3
    for token, nll in choice.evidence.items():
        total, count = 0.0, 0
        for line in LINES:
            ids = torch.tensor(with_candidates(line).input_ids[:64])
            with torch.no_grad():
                logits = model(torch.cat([torch.tensor([int(token)]), ids])[None]).logits[0]
            total += float(nn.functional.cross_entropy(logits[1:-1], ids[1:], reduction="sum"))
            count += len(ids) - 1
        assert nll == pytest.approx(total / count, abs=1e-4)  # rounded to four places
    assert choice.token == int(min(choice.evidence, key=choice.evidence.__getitem__))


def test_tokenizer_decides_itself_when_it_adds_a_first_token(with_candidates: PreTrainedTokenizerFast) -> None:
    first = with_candidates.bos_token_id
    with_candidates.backend_tokenizer.post_processor = TemplateProcessing(single="Z $A", special_tokens=[("Z", first)])
    choice = choose_sink(Unread(), with_candidates, LINES)
    assert choice.token == first != 0
    assert choice.evidence == {}


def test_model_is_read_when_tokenizer_adds_only_a_last_token(with_candidates: PreTrainedTokenizerFast) -> None:
    with_candidates.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A Z", special_tokens=[("Z", with_candidates.bos_token_id)]
    )
    assert choose_sink(Reader(0), with_candidates, LINES).token == 0


@pytest.mark.parametrize("token", [0, 17])
def test_cache_is_that_of_the_first_position_when_text_follows(token: int, model: nn.Module) -> None:
    with torch.no_grad():
        layers = model(torch.tensor([[token, *range(40, 70)]]), use_cache=True).past_key_values.layers
    expected = [part[:, :, :1].numpy() for layer in layers for part in (layer.keys, layer.values)]
    found = sink_cache(model, token)
    assert len(found) == len(expected) == 2 * 4
    for one, other in zip(found, expected, strict=True):
        assert (one.shape, one.dtype) == ((1, 2, 1, 16), np.float32)
        np.testing.assert_allclose(one, other, atol=1e-5)  # products of another size sum in another order


def test_cache_is_another_when_token_is_another(model: nn.Module) -> None:
    for one, other in zip(sink_cache(model, 0), sink_cache(model, 17), strict=True):
        assert np.abs(one - other).max() > 1e-2


def test_cache_is_in_the_bundle_when_exported(model: nn.Module, fp32_bundle: Any) -> None:
    constants = load_file(fp32_bundle / "constants.safetensors")
    found = [constants[f"sink_{part}.{layer}"] for layer in range(4) for part in "kv"]
    for one, other in zip(found, sink_cache(model, 0), strict=True):
        np.testing.assert_array_equal(one, other)
