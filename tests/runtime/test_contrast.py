"""Contrast: which contexts an edit is told from, and the key against dense linear algebra in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mobiedit.runtime import Bundle, EditConfig, EditRequest, Method, open_bundle
from mobiedit.runtime.closed_form import SILENT
from mobiedit.runtime.configuration import GaussNewtonConfig
from mobiedit.runtime.contrast import CONTRASTS, Contrast, contrast_rows, contrasted_key, contrasts_of
from mobiedit.runtime.decoder import Slots
from mobiedit.runtime.edit_problem import through_edit_layer
from mobiedit.runtime.errors import NumericsError, RequestError
from mobiedit.runtime.rank_one import solve_key
from mobiedit.runtime.tokenizer import Tokenizer

Doubles = NDArray[np.float64]

# Float32 inverses of matrices with condition numbers below 100, and Gram matrices with at most 12 times that.
TOLERANCE = 1e-3

# Random weights tell contexts apart more than trained ones do: without contrast the activations are .14 and .44.
CONTEXTS = (Contrast("{}", 0.05), Contrast("The name of {}", 0.2))
QUICK = GaussNewtonConfig(steps=1, forwards=1)


def covariance(rng: np.random.Generator, width: int) -> Doubles:
    keys = rng.standard_normal((2 * width, width))
    return keys.T @ keys / (2 * width) + 0.1 * np.eye(width)


def least_direction(c: Doubles, keys: Doubles, wanted: Doubles) -> Doubles:
    """The u of least ``u^T C u`` with ``keys @ u = wanted``, by its Lagrange system."""
    width, count = len(c), len(keys)
    system = np.block([[c, keys.T], [keys, np.zeros((count, count))]])
    return np.linalg.solve(system, np.concatenate([np.zeros(width), wanted]))[:width]


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), contexts=st.integers(0, 3), likeness=st.floats(0, 0.8))
def test_direction_is_the_least_that_keeps_to_its_activations_when_contexts_are_any(
    seed: int, contexts: int, likeness: float
) -> None:
    rng = np.random.default_rng(seed)
    c = covariance(rng, 24)
    star = rng.standard_normal(24)
    elsewhere = likeness * star + rng.standard_normal((contexts, 24))
    most = [0.5, 0.0, 0.2][:contexts]
    inverse = np.linalg.inv(c).astype(np.float32)
    key, direction, leverage = contrasted_key(star.astype(np.float32), elsewhere.astype(np.float32), most, inverse)
    assert key.dtype == direction.dtype == np.float32
    assert direction @ star == pytest.approx(1, abs=TOLERANCE)
    # The joint solution of many edits takes it for a key as any other.
    assert direction @ key == pytest.approx(1, abs=TOLERANCE)
    assert key @ inverse @ key == pytest.approx(leverage, rel=TOLERANCE)
    np.testing.assert_allclose(direction, inverse @ key / leverage, atol=TOLERANCE)
    reached = elsewhere @ direction
    held = np.abs(reached - most) < TOLERANCE
    constrained = least_direction(c, np.vstack([star, elsewhere[held]]), np.array([1, *np.array(most)[held]]))
    np.testing.assert_allclose(direction, constrained, atol=TOLERANCE)


def test_key_is_as_it_was_when_there_is_no_context() -> None:
    rng = np.random.default_rng(0)
    c, star = covariance(rng, 8), rng.standard_normal(8).astype(np.float32)
    inverse = np.linalg.inv(c).astype(np.float32)
    key, direction, leverage = contrasted_key(star, np.zeros((0, 8), np.float32), [], inverse)
    assert np.array_equal(key, star)
    assert np.array_equal(direction, solve_key(star, inverse)[0])
    assert leverage == solve_key(star, inverse)[1]


@pytest.mark.parametrize("cosine", [0.3, 0.999], ids=["less than it may have", "too near to tell from k*"])
def test_context_is_left_alone_when_it_asks_for_nothing_or_too_much(cosine: float) -> None:
    star = np.eye(4, dtype=np.float32)[0]
    other = np.array([[cosine, (1 - cosine**2) ** 0.5, 0, 0]], np.float32)
    _, direction, leverage = contrasted_key(star, other, [0.5], np.eye(4, dtype=np.float32))
    np.testing.assert_allclose(direction, star, atol=1e-6)
    assert leverage == pytest.approx(1)


def test_context_that_is_there_twice_counts_once() -> None:
    star, other = np.array([[1, 0, 0], [0.8, 0.6, 0]], np.float32)
    inverse = np.eye(3, dtype=np.float32)
    once = contrasted_key(star, other[None], [0.0], inverse)
    twice = contrasted_key(star, np.stack([other, other]), [0.0, 0.0], inverse)
    np.testing.assert_allclose(once[1] @ other, 0, atol=1e-6)
    np.testing.assert_allclose(twice[1], once[1], atol=1e-6)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_key_is_refused_when_it_has_no_length(value: float) -> None:
    star, other = np.full(3, value, np.float32), np.ones((1, 3), np.float32)
    with pytest.raises(NumericsError, match="no length"):
        contrasted_key(star, other, [0.0], np.eye(3, dtype=np.float32))


@pytest.mark.parametrize(
    ("prompt", "paraphrases", "texts"),
    [
        ("The mother tongue of {} is", (), ["Zoë", "The name of Zoë"]),
        ("{} speaks", (), []),
        ("  {} speaks", (), []),
        ("The name of {} comes from", (), ["Zoë"]),
        ("What does {} speak?", ("{}'s mother tongue is",), ["The name of Zoë"]),
        ("What does {} speak?", ("Which language does Zoë speak?",), ["Zoë", "The name of Zoë"]),
    ],
)
def test_contexts_are_those_that_no_wording_begins_with_when_prompts_are_of_many_forms(
    prompt: str, paraphrases: tuple[str, ...], texts: list[str], byte_tokenizer: Tokenizer
) -> None:
    request = EditRequest(prompt, "Zoë", "French", paraphrases)
    rows = contrast_rows(request, CONTEXTS, byte_tokenizer)
    assert [byte_tokenizer.decode(each.row.ids).strip() for each in rows] == texts
    assert all(each.row.subject_index == len(each.row.ids) - 1 and not each.row.readouts for each in rows)


@pytest.mark.parametrize(
    ("template", "activation"), [("The {} is", 0.0), ("of", 0.0), ("{}", 1.0), ("{}", float("nan"))]
)
def test_contrast_is_refused_when_nothing_can_be_told_from_it(template: str, activation: float) -> None:
    with pytest.raises(RequestError, match="ends with"):
        Contrast(template, activation)


def test_edit_reaches_the_subject_elsewhere_no_more_than_it_may_when_it_is_contrasted(fp32_bundle: Path) -> None:
    bundle = open_bundle(fp32_bundle)
    request = EditRequest("The capital of {} is", "France", "Rome")
    told, _ = bundle.trial(request, EditConfig(gauss_newton=QUICK, contrasts=CONTEXTS))
    plain, _ = bundle.trial(request, EditConfig(gauss_newton=QUICK, contrasts=()))
    # The search is the same; only where its delta acts is not.
    assert np.array_equal(told.search.delta, plain.search.delta)
    rows = contrast_rows(request, CONTEXTS, bundle.tokenizer)
    assert len(rows) == 2
    for each in rows:
        key = keys_of(bundle, each.row.ids)[-1]
        assert float(plain.direction @ key) > each.activation + 0.05
        assert float(told.direction @ key) == pytest.approx(each.activation, abs=TOLERANCE)


def test_edit_is_silent_in_front_of_its_key_when_the_subject_repeats_a_word(fp32_bundle: Path) -> None:
    bundle = open_bundle(fp32_bundle)
    request = EditRequest("The capital of {} is", "Bora Bora", "Rome")
    gated, _ = bundle.trial(request, EditConfig(gauss_newton=QUICK))
    linear, _ = bundle.trial(request, EditConfig(gauss_newton=QUICK, method=Method.ROME))
    before = keys_of(bundle, bundle.tokenizer.encode("The capital of Bora Bora").ids)[:-1]
    assert (before @ linear.direction).max() > 0.5
    assert (before @ gated.direction).max() < SILENT + 0.03  # the slack of `separated`


def keys_of(bundle: Bundle, ids: Sequence[int]) -> NDArray[np.float32]:
    """Return [T, F] of a text."""
    empty = Slots.empty(bundle.manifest.slots, bundle.manifest.shape)
    return through_edit_layer(bundle.decoder, np.array([ids], np.int64), empty).keys[0]


def test_contrast_is_refused_when_the_method_has_none() -> None:
    assert contrasts_of(Method.GATED, wanted=True) == CONTRASTS
    assert contrasts_of(Method.GATED, wanted=None) == EditConfig().contrasts == CONTRASTS
    assert contrasts_of(Method.GATED, wanted=False) == ()
    assert contrasts_of(Method.ROME, wanted=False) == contrasts_of(Method.ROME, wanted=None) == ()
    with pytest.raises(RequestError, match="for gated edits"):
        contrasts_of(Method.ROME, wanted=True)


def test_batch_writes_what_an_edit_would_be_alone_when_it_is_contrasted(bundle: Bundle) -> None:
    config = EditConfig(gauss_newton=QUICK, contrasts=CONTEXTS, force=True)
    request = EditRequest("The capital of {} is", "France", "Rome")
    alone, _ = bundle.trial(request, config)
    plain, _ = bundle.trial(request, replace(config, contrasts=()))
    assert np.abs(alone.direction - plain.direction).max() > 0.1 * np.abs(plain.direction).max()
    bundle.edit_batch([request], config)
    (edit,) = bundle.edits()
    # Keys are computed at the subjects' tokens alone there, which rounds otherwise.
    np.testing.assert_allclose(edit.direction, alone.direction, atol=TOLERANCE * np.abs(alone.direction).max())
    np.testing.assert_allclose(edit.delta, alone.search.delta, atol=0.05 * np.abs(alone.search.delta).max())
    assert edit.gate == pytest.approx(alone.gate, abs=TOLERANCE)


@pytest.mark.parametrize("place", [0, 1])
def test_key_is_refused_when_one_of_them_has_no_numbers(place: int) -> None:
    keys = np.eye(2, 4, dtype=np.float32)
    keys[place, 3] = np.nan
    with pytest.raises(NumericsError, match="no length"):
        contrasted_key(keys[0], keys[1:], [0.5], np.eye(4, dtype=np.float32))
