"""The rounded edit layer: what rounding keeps exactly, and that FP32 is the graph itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mobiedit.runtime import Bundle
from mobiedit.runtime.decoder import Slots
from scripts.support.fake_quantisation import NumberFormat, QuantisedEditLayer, rounded
from scripts.support.host_model import HostModel

INTEGERS = [NumberFormat.INT4, NumberFormat.INT8, NumberFormat.INT16]
X = torch.from_numpy(np.random.default_rng(0).standard_normal((7, 200)).astype(np.float32))


def test_fp32_is_left_alone() -> None:
    assert rounded(X, NumberFormat.FP32) is X


def test_fp16_is_the_nearest_half() -> None:
    np.testing.assert_array_equal(rounded(X, NumberFormat.FP16), X.numpy().astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("number_format", INTEGERS)
def test_integers_round_to_the_nearest_step(number_format: NumberFormat) -> None:
    largest = 2 ** (int(number_format.removeprefix("int")) - 1) - 1
    step = X.abs().amax(dim=1, keepdim=True) / largest
    found = rounded(X, number_format)
    assert ((found - X).abs() <= step * 0.5001).all()  # half a step, and the rounding of FP32
    levels = found / step
    np.testing.assert_allclose(levels, levels.round(), atol=2e-7 * largest)
    assert levels.abs().max() <= largest * (1 + 1e-6)
    assert all(len(row.unique()) <= 2 * largest + 1 for row in found)


@pytest.mark.parametrize("number_format", list(NumberFormat))
def test_rounding_keeps_zero_sign_largest_and_itself(number_format: NumberFormat) -> None:
    found = rounded(X, number_format)
    # An integer's scale is computed anew from a largest value that is itself rounded, in FP32.
    torch.testing.assert_close(rounded(found, number_format), found, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.abs().amax(dim=1), X.abs().amax(dim=1), rtol=5e-4, atol=0)
    assert (found * X >= 0).all()
    torch.testing.assert_close(rounded(-X, number_format), -found, rtol=0, atol=0)
    assert not rounded(torch.zeros(2, 3), number_format).any()


@pytest.fixture
def feeds(tiny: Bundle) -> dict[str, np.ndarray]:
    shape, rng = tiny.manifest.shape, np.random.default_rng(1)
    slots = Slots.empty(tiny.manifest.slots, shape).with_edit(
        0,
        rng.standard_normal(shape.mlp_width).astype(np.float32) / shape.mlp_width,
        rng.standard_normal(shape.width).astype(np.float32),
    )
    residual = rng.standard_normal((2, 3, shape.width)).astype(np.float32)
    return {"residual": residual, "directions": slots.directions, "deltas": slots.deltas, "gates": slots.gates}


def test_fp32_layer_is_the_edit_graph(tiny: Bundle, host: HostModel, feeds: dict[str, np.ndarray]) -> None:
    found = QuantisedEditLayer(host.edit.mlp, NumberFormat.FP32).run(feeds)
    expected = tiny.decoder.run_edit(feeds["residual"], Slots(feeds["directions"], feeds["deltas"], feeds["gates"]))
    for name, want in (("hidden_out", expected.hidden), ("key", expected.keys), ("value", expected.values)):
        # The edit is folded into the weight here and added behind it there: sums of 128 products in another order.
        np.testing.assert_allclose(found[name], want, atol=1e-5)


def test_fewer_bits_are_further_off_and_the_source_stays(host: HostModel, feeds: dict[str, np.ndarray]) -> None:
    before = host.edit.mlp.gate_proj.weight.clone()
    exact = QuantisedEditLayer(host.edit.mlp, NumberFormat.FP32).run(feeds)["value"]
    order = (NumberFormat.INT16, NumberFormat.INT8, NumberFormat.INT4)
    errors = [np.abs(QuantisedEditLayer(host.edit.mlp, each).run(feeds)["value"] - exact).max() for each in order]
    assert 0 < errors[0] < errors[1] < errors[2]
    assert torch.equal(before, host.edit.mlp.gate_proj.weight)


def test_edit_below_half_a_step_is_lost(host: HostModel, feeds: dict[str, np.ndarray]) -> None:
    layer = QuantisedEditLayer(host.edit.mlp, NumberFormat.INT4)
    without = layer.run({**feeds, "deltas": np.zeros_like(feeds["deltas"])})["value"]
    weight = host.edit.mlp.down_proj.weight
    step = weight.abs().amax(dim=1) / 7
    distance = (weight / step[:, None] - (weight / step[:, None]).round()).abs()
    room = float(((0.5 - distance) * step[:, None]).min())  # below this, no weight moves to another level
    small = feeds["deltas"] * np.float32(0.1 * room / np.abs(feeds["deltas"].T @ feeds["directions"]).max())
    # The largest weight of a channel, and so its scale, moves with the edit, but by no level.
    np.testing.assert_allclose(layer.run({**feeds, "deltas": small})["value"], without, atol=1e-4)
