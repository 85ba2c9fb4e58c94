"""Written graphs against the source model."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from mobiedit.calibration.text import held_out_text
from mobiedit.export.check import (
    FP32_TOLERANCE,
    LIMITS,
    Comparison,
    Reference,
    compare,
    require_close,
    require_exact,
)
from mobiedit.export.configuration import Precision
from mobiedit.runtime import Bundle, open_bundle
from mobiedit.runtime.decoder import Slots
from mobiedit.runtime.errors import ExportError

AT_LIMIT = Comparison(max_abs_logit_difference=FP32_TOLERANCE, mean_cosine=1.0, nll=3.0, nll_change=0.0, tokens=10)


def at_limits(precision: Precision) -> Comparison:
    limits = LIMITS[precision]
    return replace(AT_LIMIT, mean_cosine=limits.min_cosine, nll_change=limits.max_nll_change)


@pytest.fixture(scope="module")
def opened(fp32_bundle: Path) -> Bundle:
    return open_bundle(fp32_bundle)


@pytest.fixture(scope="module")
def texts(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    return [tokenizer(line).input_ids for line in held_out_text()[:6]]


def compared(bundle: Bundle, reference: Reference) -> Comparison:
    return compare(bundle.decoder, Slots.empty(3, bundle.manifest.shape), reference)


def test_comparison_is_exact_when_graphs_are_the_model(
    opened: Bundle, source_model: nn.Module, texts: list[list[int]], tmp_path: Path
) -> None:
    slots = Slots.empty(3, opened.manifest.shape)
    advanced: list[int] = []
    read: list[int] = []
    reference = Reference(tmp_path, texts).read(source_model, opened.manifest.sink_token, read.append)
    result = compare(opened.decoder, slots, reference, advanced.append)
    # FP32 sums in another order: about 1e-5 on logits of this size.
    assert 0 < result.max_abs_logit_difference <= 1e-4
    assert result.mean_cosine == pytest.approx(1, abs=1e-6)
    assert result.nll_change == pytest.approx(0, abs=1e-5)
    assert result.tokens == sum(map(len, texts))
    assert advanced == [1] * len(texts)
    assert sum(read) == len(texts)
    require_exact(result)
    require_close(result, Precision.FP16)


def test_comparison_has_the_models_own_nll_when_text_is_read(
    opened: Bundle, source_model: nn.Module, texts: list[list[int]], tmp_path: Path
) -> None:
    sink = opened.manifest.sink_token
    total = 0.0
    for ids in texts:
        with torch.no_grad():
            logits = source_model(torch.tensor([[sink, *ids]])).logits[0, 1:-1]
        total += float(nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum"))
    result = compared(opened, Reference(tmp_path, texts).read(source_model, sink))
    assert result.nll == pytest.approx(total / sum(len(ids) - 1 for ids in texts), abs=1e-4)  # FP32 means


def test_comparison_is_refused_when_one_weight_is_another(
    opened: Bundle, source_model: nn.Module, texts: list[list[int]], tmp_path: Path
) -> None:
    other = copy.deepcopy(source_model)
    with torch.no_grad():
        other.model.layers[2].self_attn.v_proj.weight[3] += 1
    result = compared(opened, Reference(tmp_path, texts).read(other, opened.manifest.sink_token))
    with pytest.raises(ExportError, match="differ from the source model"):
        require_exact(result)


def test_comparison_is_refused_when_sink_is_another(
    opened: Bundle, source_model: nn.Module, texts: list[list[int]], tmp_path: Path
) -> None:
    result = compared(opened, Reference(tmp_path, texts).read(source_model, 5))
    with pytest.raises(ExportError, match="differ from the source model"):
        require_exact(result)


def test_require_exact_passes_when_at_the_limit() -> None:
    require_exact(AT_LIMIT)


@pytest.mark.parametrize("difference", [FP32_TOLERANCE * 1.01, math.inf, math.nan])
def test_require_exact_raises_when_beyond_the_limit_or_nan(difference: float) -> None:
    with pytest.raises(ExportError, match=r"^the FP32 graphs differ [^\n]+$"):
        require_exact(replace(AT_LIMIT, max_abs_logit_difference=difference))


def test_limits_are_there_when_a_precision_is_not_fp32() -> None:
    assert LIMITS.keys() == set(Precision) - {Precision.FP32}


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("change", [{}, {"nll_change": -0.2}, {"max_abs_logit_difference": 9.0}])
def test_require_close_passes_when_at_the_limits_or_within(change: dict[str, float], precision: Precision) -> None:
    require_close(replace(at_limits(precision), **change), precision)


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize(
    ("field", "value"),
    [("mean_cosine", -1e-3), ("mean_cosine", math.nan), ("nll_change", 1e-3), ("nll_change", math.nan)],
)
def test_require_close_raises_when_beyond_a_limit_or_nan(field: str, value: float, precision: Precision) -> None:
    limit = at_limits(precision)
    with pytest.raises(ExportError, match=rf"^the {precision} graphs are off [^\n]+a higher --precision$"):
        require_close(replace(limit, **{field: getattr(limit, field) + value}), precision)


@pytest.mark.parametrize("precision", LIMITS)
def test_more_samples_are_named_as_a_remedy_when_the_precision_depends_on_it(precision: Precision) -> None:
    with pytest.raises(ExportError) as caught:
        require_close(replace(AT_LIMIT, mean_cosine=0.0), precision)
    assert ("--samples" in str(caught.value)) == (precision is Precision.W8A16)
