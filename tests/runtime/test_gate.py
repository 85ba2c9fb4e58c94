import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobiedit.runtime.decoder import Decoder, Slots
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.gate import Gate, gate_parameters, strength
from mobiedit.runtime.manifest import Manifest

ACTIVATIONS = st.floats(-50, 50, width=32)


@given(ACTIVATIONS)
def test_strength_is_the_activation_when_there_is_no_gate(activation: float) -> None:
    assert strength(np.float32([activation]), gate_parameters(None))[0] == np.float32(activation)


@given(ACTIVATIONS, st.floats(0, 0.9), st.floats(0.02, 0.1))
def test_strength_is_nothing_below_the_gate_and_all_above_it(activation: float, closed: float, width: float) -> None:
    found = strength(np.float32([activation]), gate_parameters(Gate(closed, closed + width)))[0]
    assert 0 <= found <= 1
    # The slope is at most 50: rounding of the bounds in float32 moves them by less than 1e-5.
    if activation < closed - 1e-5:
        assert found == 0
    if activation > closed + width + 1e-5:
        assert found == 1


def test_strength_is_half_when_activation_is_in_the_middle() -> None:
    assert strength(np.float32([0.75]), gate_parameters(Gate(0.6, 0.9)))[0] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(("closed", "open_"), [(0.5, 0.5), (0.9, 0.6), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 1.0)])
def test_gate_is_refused_when_its_own_key_would_not_pass(closed: float, open_: float) -> None:
    with pytest.raises(RequestError, match=r"0 to 1, the lower one first: give for example"):
        Gate(closed, open_)


@pytest.mark.parametrize("gate", [None, Gate(0.6, 0.9)])
def test_edit_graph_adds_what_strength_says(decoder: Decoder, manifest: Manifest, gate: Gate | None) -> None:
    rng = np.random.default_rng(0)
    shape = manifest.shape
    residual = rng.standard_normal((2, 5, shape.width)).astype(np.float32)
    empty = Slots.empty(manifest.slots, shape)
    without = decoder.run_edit(residual, empty)
    key = without.keys[0, 2]
    direction, delta = key / np.float32(key @ key), rng.standard_normal(shape.width).astype(np.float32)
    found = decoder.run_edit(residual, empty.with_edit(1, direction, delta, gate))
    strengths = strength(without.keys @ direction, gate_parameters(gate))
    # FP32 sums of 128 products in another order, times a slope of 3.
    np.testing.assert_allclose(found.values, without.values + strengths[..., None] * delta, atol=2e-5)
    np.testing.assert_array_equal(found.keys, without.keys)
    if gate:
        assert (strengths == 0).any()  # tokens that it does not reach stay as they are, to the bit
        np.testing.assert_array_equal(found.values[strengths == 0], without.values[strengths == 0])


def test_parameters_fit_into_half_precision_when_there_is_no_gate() -> None:
    assert np.isfinite(gate_parameters(None).astype(np.float16)).all()
