"""An edit layer in few bits: weights and values rounded to what a number format can hold, computed in FP32."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from enum import StrEnum
from functools import partial

import torch
from numpy.typing import NDArray
from torch import Tensor

from mobiedit.export.segment import GatedMLP
from mobiedit.runtime import Bundle
from mobiedit.runtime.costs import CostMeter
from mobiedit.runtime.decoder import Decoder

from .host_model import HostModel


class NumberFormat(StrEnum):
    """A number format of the edit layer."""

    INT4 = "int4"
    INT8 = "int8"
    INT16 = "int16"
    FP16 = "fp16"
    FP32 = "fp32"


def rounded(x: Tensor, number_format: NumberFormat) -> Tensor:
    """Round the rows of ``x`` [..., D] to a format.

    Integers are symmetric with one scale a row, its largest magnitude over 2^(bits - 1) - 1: an output channel of a
    weight, a token of a value.
    """
    if number_format is NumberFormat.FP32:
        return x
    if number_format is NumberFormat.FP16:
        return x.to(torch.float16).to(x.dtype)
    largest = 2 ** (int(number_format.removeprefix("int")) - 1) - 1
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny) / largest
    return (x / scale).round().clamp(-largest, largest) * scale


class QuantisedEditLayer:
    """The edit graph's stand-in for edits without gates: same outputs, its numbers rounded.

    The slots are added to the down projection before it is rounded, as an edit of stored weights would be, so that
    an update below half a step of the format is lost. The value is rounded as well.

    Parameters
    ----------
    source
        The edit layer's MLP in FP32, left as it is.
    number_format
        Of the three projections' weights, and of the value.
    """

    inputs = ("residual", "directions", "deltas")
    outputs = ("hidden_out", "key", "value")

    def __init__(self, source: GatedMLP, number_format: NumberFormat) -> None:
        self.name = f"edit layer in {number_format}"
        self._round: Callable[[Tensor], Tensor] = partial(rounded, number_format=number_format)
        self._mlp = deepcopy(source)
        self._down = source.down_proj.weight
        for projection in (self._mlp.gate_proj, self._mlp.up_proj):
            projection.weight.data = self._round(projection.weight.data)

    def run(self, feeds: dict[str, NDArray], meter: CostMeter | None = None) -> dict[str, NDArray]:
        """Evaluate the layer."""
        residual, directions, deltas = (torch.from_numpy(feeds[name]) for name in self.inputs)
        with torch.no_grad():
            key = self._mlp.key(residual)
            value = self._round(key @ self._round(self._down + deltas.T @ directions).T)
        return {"hidden_out": (residual + value).numpy(), "key": key.numpy(), "value": value.numpy()}


def quantise_edit_layer(bundle: Bundle, host: HostModel, number_format: NumberFormat) -> None:
    """Put a rounded edit layer in the place of an open bundle's edit graph; nothing on the disk changes."""
    layer = QuantisedEditLayer(host.edit.mlp, number_format)
    bundle.decoder = Decoder(replace(bundle.decoder.parts, edit=layer), CostMeter())
