"""The shapes that a bundle's graphs have on an NPU, run on the CPU."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobiedit.runtime.configuration import ExecutionConfig
from mobiedit.runtime.costs import CostMeter
from mobiedit.runtime.decoder import Decoder, Slots
from mobiedit.runtime.edit_problem import EditProblem, prefill
from mobiedit.runtime.generation import Generator
from mobiedit.runtime.manifest import Manifest
from mobiedit.runtime.prompt_rows import EditRequest, build_rows
from mobiedit.runtime.static_graphs import segment_variants, static_graphs
from mobiedit.runtime.tokenizer import Tokenizer

REQUEST = EditRequest("The mother tongue of {} is", "Anna Miller", "old")
TOLERANCE = 1e-4  # as of one text in pieces: states of size 1 to 10 through four layers, in another order


@pytest.fixture(scope="module")
def static(fp32_bundle: Path, manifest: Manifest, decoder: Decoder) -> Decoder:
    """The FP32 bundle's graphs in fixed shapes."""
    graphs = static_graphs(
        fp32_bundle, manifest.shape, manifest.edit_layer, manifest.mask_value, 7, ExecutionConfig(threads=1)
    )
    return Decoder(replace(decoder.parts, **graphs), CostMeter())


@given(rows=st.integers(1, 20), context=st.integers(2, 5000), batch=st.integers(1, 200))
def test_variants_hold_texts_up_to_the_context_and_none_is_longer(rows: int, context: int, batch: int) -> None:
    variants = segment_variants(rows, context)
    assert max(v.tokens for v in variants) == min(context, 256)
    assert max(v.past for v in variants) == min(context, 1024)
    assert len(set(variants)) == len(variants)
    assert {v.batch for v in variants} == {1, rows, 4 * rows}


def test_search_reads_the_same_when_shapes_are_fixed(
    static: Decoder, decoder: Decoder, manifest: Manifest, byte_tokenizer: Tokenizer
) -> None:
    rows = build_rows(REQUEST, manifest.row_prefixes, byte_tokenizer, 32)
    slots = Slots.empty(manifest.slots, manifest.shape)
    direction = np.full(manifest.shape.mlp_width, 0.1, np.float32)
    deltas = np.random.default_rng(0).standard_normal((5, manifest.shape.width)).astype(np.float32)
    read = []
    for each in (decoder, static):
        problem = EditProblem(each, rows, prefill(each, rows, slots), direction, slots, CostMeter())
        read.append((*problem.readouts(deltas), problem.initial_readouts))
    for wanted, found in zip(*read, strict=True):
        np.testing.assert_allclose(found, wanted, atol=TOLERANCE)


@pytest.mark.parametrize("text", ["Paris", "The weather was fine. In the morning, they talked about the report."])
def test_generation_writes_the_same_when_shapes_are_fixed(
    text: str, static: Decoder, decoder: Decoder, manifest: Manifest, byte_tokenizer: Tokenizer
) -> None:
    ids, slots = byte_tokenizer.encode(text).ids, Slots.empty(manifest.slots, manifest.shape)
    wanted, found = (list(islice(Generator(each, slots).tokens(ids, 20), 20)) for each in (decoder, static))
    assert found == wanted
    np.testing.assert_allclose(
        Generator(static, slots).all_logits(ids), Generator(decoder, slots).all_logits(ids), atol=TOLERANCE
    )
