"""Weights in half precision that are widened when used, against their FP32 copies."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from mobiedit.calibration import widened
from mobiedit.calibration.widened import product


@pytest.fixture(params=[2**24, 7 * 24, 1])
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Widen all at once, in pieces of which the last is shorter, and row by row."""
    monkeypatch.setattr(widened, "_PIECE", request.param)


@pytest.mark.parametrize("half", widened.HALVES.values())
def test_product_and_gradient_are_those_of_fp32_when_weight_is_half(half: torch.dtype, piece: None) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(40, 24).to(half), torch.randn(2, 3, 24, requires_grad=True)
    outer = torch.randn(2, 3, 40)
    y = product(x, weight)
    (gradient,) = torch.autograd.grad((y * outer).sum(), x)
    wanted = F.linear(x, weight.float())
    (exact,) = torch.autograd.grad((wanted * outer).sum(), x)
    # FP32 sums of 40 numbers in another order.
    assert torch.allclose(y, wanted, rtol=0, atol=1e-5)
    assert torch.allclose(gradient, exact, rtol=0, atol=1e-5)


def test_product_is_the_plain_one_when_precisions_agree() -> None:
    weight, x = torch.randn(5, 4), torch.randn(3, 4)
    assert torch.equal(product(x, weight), F.linear(x, weight))


def test_product_is_bfloat16_when_autocast_is_on(piece: None) -> None:
    weight, x = torch.randn(40, 24).bfloat16(), torch.randn(3, 24, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = product(x, weight)
    y.float().sum().backward()
    assert y.dtype is torch.bfloat16
    assert x.grad is not None
    assert x.grad.dtype is torch.float32
    # bfloat16 has 8 bits: sums of 24 and of 40 numbers of size one.
    assert torch.allclose(y.float(), F.linear(x, weight.float()), atol=0.1)
    assert torch.allclose(x.grad, weight.float().sum(dim=0).expand(3, -1), atol=0.2)
