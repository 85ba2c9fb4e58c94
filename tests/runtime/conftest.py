"""What the tests of the numerics share: the tiny Llama in the runtime and in transformers, tasks of a search on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from mobiedit.runtime import open_bundle
from mobiedit.runtime.bundle_layout import KEY_STATISTICS, LENS, TOKENIZER
from mobiedit.runtime.configuration import LossConfig
from mobiedit.runtime.costs import CostMeter
from mobiedit.runtime.decoder import Decoder, Slots
from mobiedit.runtime.edit_problem import EditProblem, Floats, prefill
from mobiedit.runtime.key_statistics import KeyStatistics
from mobiedit.runtime.lens import Lens
from mobiedit.runtime.manifest import Manifest, read_manifest
from mobiedit.runtime.prompt_rows import EditRequest, build_rows
from mobiedit.runtime.rank_one import rank_one_direction
from mobiedit.runtime.readout_loss import LossTerms, ReadoutLoss, log_softmax
from mobiedit.runtime.search import SearchTask
from mobiedit.runtime.tokenizer import Tokenizer
from tests.runtime.gauss_newton_case import REQUESTS, Case


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


@pytest.fixture(scope="session")
def lens(fp32_bundle: Path) -> Lens:
    """The FP32 bundle's lens."""
    return Lens.read(fp32_bundle / LENS)


@pytest.fixture
def open_case(
    decoder: Decoder, manifest: Manifest, byte_tokenizer: Tokenizer, fp32_bundle: Path
) -> Callable[..., Case]:
    """Return a function that opens the task of a request, as an edit does; by default all rows are searched on."""
    inverse = KeyStatistics.find(fp32_bundle / KEY_STATISTICS)

    def make(
        request: EditRequest,
        prefixes: tuple[str, ...] = manifest.row_prefixes,
        target: tuple[int, ...] | None = None,
        config: LossConfig = LossConfig(),  # noqa: B008 - frozen
        *,
        echo_tokens: int = 0,
    ) -> Case:
        meter, asked, progress = CostMeter(), [], []
        metered = decoder.metered(meter)
        rows = build_rows(request, prefixes, byte_tokenizer, 32, echo_tokens=echo_tokens)
        rows = replace(rows, target=target or rows.target)
        slots = Slots.empty(manifest.slots, manifest.shape)
        filled = prefill(metered, rows, slots)
        value = filled.subject_value(rows)
        direction = rank_one_direction(filled.subject_key(rows), inverse)
        problem = EditProblem(metered, rows, filled, direction, slots, meter)

        class Noted(ReadoutLoss):
            def __call__(self, readouts: Floats, kept: Floats, deltas: Floats) -> LossTerms:
                asked.extend(np.array(deltas))
                return super().__call__(readouts, kept, deltas)

        before = log_softmax(decoder.run_head(problem.initial_kept[0]))
        norm, behind = float(np.linalg.norm(value)), len(rows.behind)
        loss = Noted(decoder.run_head, rows.target, before, norm, config, behind)
        task = SearchTask(problem, loss, value, filled.subject_hidden(rows), metered, progress.append)
        return Case(task, meter, asked, progress)

    return make


@pytest.fixture(params=REQUESTS)
def case(request: pytest.FixtureRequest, open_case: Callable[..., Case]) -> Case:
    """The task of each request."""
    return open_case(REQUESTS[request.param])


@pytest.fixture
def pair(open_case: Callable[..., Case], manifest: Manifest) -> Case:
    """Two rewriting rows."""
    return open_case(REQUESTS["one-token"], manifest.row_prefixes[:2])


@pytest.fixture
def bare(open_case: Callable[..., Case]) -> Case:
    """One rewriting row, which even a model without training can be taught."""
    return open_case(REQUESTS["one-token"], ("{}",))
