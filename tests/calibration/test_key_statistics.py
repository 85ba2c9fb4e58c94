"""The inverse covariance of the edit layer's keys, against keys collected another way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from mobiedit.calibration.key_statistics import KeyStatistics, collect_key_statistics
from mobiedit.calibration.text import default_text

LAYER, SINK, WIDTH = 1, 0, 128
ALL = 1e6  # keys wanted, as a multiple of the width: more than there are
LINES = default_text()[:60]


def keys_of(model: nn.Module, ids: list[int], layer: int = LAYER) -> NDArray[np.float64]:
    """Keys of one text, unpadded and in a whole forward; the sink's own is left out."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], __: object) -> None:
        seen.append(inputs[0])

    handle = model.model.layers[layer].mlp.down_proj.register_forward_hook(keep)
    with torch.no_grad():
        model(torch.tensor([[SINK, *ids]]))
    handle.remove()
    return seen[0][0, 1:].double().numpy()


def collect(model: nn.Module, tokenizer: PreTrainedTokenizerFast, layer: int, *arguments: Any) -> KeyStatistics:
    """Statistics of a single layer."""
    return collect_key_statistics(model, tokenizer, [layer], *arguments)[layer]


def inverse_of(keys: NDArray[np.float64]) -> NDArray[np.float64]:
    covariance = keys.T @ keys / len(keys)
    return np.linalg.inv(covariance + 1e-3 * np.trace(covariance) / WIDTH * np.eye(WIDTH))


def assert_close(found: NDArray[np.float32], expected: NDArray[np.float64]) -> None:
    assert (found.shape, found.dtype) == ((WIDTH, WIDTH), np.float32)
    # Keys of padded batches differ by 1e-6 of their size; the ridge bounds what the inverse makes of it.
    assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)


def test_inverse_is_that_of_all_keys_when_multiplier_takes_all(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = [tokenizer(line).input_ids for line in LINES]
    result = collect(model, tokenizer, LAYER, SINK, LINES, ALL)
    assert len({len(ids) for ids in texts}) > 8  # batches of unlike lengths are padded
    assert result.keys == sum(map(len, texts))
    assert_close(result.inverse_covariance, inverse_of(np.concatenate([keys_of(model, ids) for ids in texts])))


@pytest.mark.parametrize("layer", [0, 2])
def test_inverse_is_of_the_layers_own_keys_when_layer_is_another(
    layer: int, model: nn.Module, tokenizer: PreTrainedTokenizerFast
) -> None:
    lines = LINES[:20]
    keys = np.concatenate([keys_of(model, tokenizer(line).input_ids, layer) for line in lines])
    assert_close(collect(model, tokenizer, layer, SINK, lines, ALL).inverse_covariance, inverse_of(keys))


def test_text_is_cut_at_128_tokens_when_longer(model: nn.Module, tokenizer: PreTrainedTokenizerFast) -> None:
    long = " ".join(LINES)
    ids = tokenizer(long).input_ids
    assert len(ids) > 128
    result = collect(model, tokenizer, LAYER, SINK, [long], ALL)
    assert result.keys == 128
    assert_close(result.inverse_covariance, inverse_of(keys_of(model, ids[:128])))


@pytest.mark.parametrize(("multiplier", "wanted"), [(0.5, 64), (1.0, 128), (2.3, 294), (1e-9, 1)])
def test_keys_are_exactly_the_wanted_when_text_has_more(
    multiplier: float, wanted: int, model: nn.Module, tokenizer: PreTrainedTokenizerFast
) -> None:
    advanced: list[int] = []
    result = collect(model, tokenizer, LAYER, SINK, LINES, multiplier, advanced.append)
    assert (result.keys, result.wanted) == (wanted, wanted)
    assert sum(advanced) == wanted


def test_inverse_is_of_the_wanted_keys_alone_when_text_has_more(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast
) -> None:
    lines = [LINES[0]] * 8  # one batch of equal lines: which keys come first is known
    keys = keys_of(model, tokenizer(LINES[0]).input_ids)
    result = collect(model, tokenizer, LAYER, SINK, lines, (len(keys) + 3) / WIDTH)
    assert result.keys == len(keys) + 3
    assert_close(result.inverse_covariance, inverse_of(np.concatenate([keys, keys[:3]])))


def test_missing_keys_are_reported_when_text_is_short(model: nn.Module, tokenizer: PreTrainedTokenizerFast) -> None:
    advanced: list[int] = []
    result = collect(model, tokenizer, LAYER, SINK, LINES[:2], 10.0, advanced.append)
    available = sum(len(tokenizer(line).input_ids) for line in LINES[:2])
    assert (result.keys, result.wanted) == (available, 1280)
    assert available < 1280
    assert sum(advanced) == available
    assert np.isfinite(result.inverse_covariance).all()  # fewer keys than dimensions: the ridge holds it


def test_long_lines_are_seen_when_few_keys_are_wanted(model: nn.Module, tokenizer: PreTrainedTokenizerFast) -> None:
    class Watched(nn.Module):
        """Notes the length of each batch that the model reads."""

        def __init__(self) -> None:
            super().__init__()
            self.model, self.lengths = model.model, list[int]()
            self.handle = self.model.register_forward_pre_hook(self.note, with_kwargs=False)

        def note(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.lengths.append(inputs[0].shape[1] - 1)

    watched = Watched()
    try:
        collect(watched, tokenizer, LAYER, SINK, default_text(), 10.0)
    finally:
        watched.handle.remove()
    all_lengths = sorted(len(tokenizer(line).input_ids) for line in default_text())
    assert max(watched.lengths) > all_lengths[3 * len(all_lengths) // 4]  # some of the longest quarter


def test_model_is_as_before_when_collected(model: nn.Module, tokenizer: PreTrainedTokenizerFast) -> None:
    ids = torch.tensor([[SINK, *range(40, 60)]])
    with torch.no_grad():
        before = model(ids).logits
        collect(model, tokenizer, LAYER, SINK, LINES[:3], ALL)
        after = model(ids).logits  # a hook left behind would end this forward
    assert torch.equal(before, after)


def test_statistics_are_the_same_when_collected_again(model: nn.Module, tokenizer: PreTrainedTokenizerFast) -> None:
    one, other = (collect(model, tokenizer, LAYER, SINK, LINES, 3.0) for _ in range(2))
    np.testing.assert_array_equal(one.inverse_covariance, other.inverse_covariance)


def test_layers_have_the_same_statistics_when_collected_together(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast
) -> None:
    advanced: list[int] = []
    together = collect_key_statistics(model, tokenizer, [2, 0, 1], SINK, LINES, 3.0, advanced.append)
    assert list(together) == [0, 1, 2]
    assert sum(advanced) == 384  # counted once, not once a layer
    for layer, statistics in together.items():
        alone = collect(model, tokenizer, layer, SINK, LINES, 3.0)
        assert (statistics.keys, statistics.wanted) == (alone.keys, alone.wanted) == (384, 384)
        np.testing.assert_array_equal(statistics.inverse_covariance, alone.inverse_covariance)
