"""The decoder in four graphs: prefix, edit layer, suffix and head, with K/V caches and edit slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .costs import CostMeter
from .errors import RequestError
from .execution import Runnable
from .gate import Gate, gate_parameters
from .manifest import ModelShape
from .rotary import attention_mask, rotary_factors

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Slots:
    """Edits as inputs of the edit graph: at a key k it adds ``strength(directions @ k) @ deltas`` to the value.

    Without gates the strength is the activation itself, and the down projection acts as ``W + deltas.T @ directions``.

    Attributes
    ----------
    directions
        [K, F] float32; a row of zeros is a free slot.
    deltas
        [K, D] float32.
    gates
        [4, K] float32, a column of `gate_parameters` for each edit.
    """

    directions: Floats
    deltas: Floats
    gates: Floats

    @staticmethod
    def empty(slots: int, shape: ModelShape) -> Slots:
        """Return slots that change nothing."""
        sizes = ((slots, shape.mlp_width), (slots, shape.width), (4, slots))
        return Slots(*(np.zeros(size, np.float32) for size in sizes))

    def with_edit(self, slot: int, direction: Floats, delta: Floats, gate: Gate | None = None) -> Slots:
        """Return the slots with one more edit in the free slot ``slot``."""
        directions, deltas, gates = self.directions.copy(), self.deltas.copy(), self.gates.copy()
        directions[slot], deltas[slot], gates[:, slot] = direction, delta, gate_parameters(gate)
        return Slots(directions, deltas, gates)


@dataclass(frozen=True)
class LayerCache:
    """K and V of a run of layers for a batch of rows.

    Attributes
    ----------
    tensors
        K and V of each layer in turn, [B, n_kv, P, head_dim].
    lengths
        [B] tokens of each row that are valid, the sink token included.
    """

    tensors: tuple[Floats, ...]
    lengths: Integers

    @property
    def past(self) -> int:
        """Tokens held for every row, valid or not."""
        return int(self.tensors[0].shape[2])

    def take(self, rows: Integers | slice) -> LayerCache:
        """Return the cache of some rows, in the order given."""
        return LayerCache(tuple(np.ascontiguousarray(t[rows]) for t in self.tensors), self.lengths[rows])

    def extended(self, new: Sequence[Floats]) -> LayerCache:
        """Return the cache with new tokens behind the held ones; every held token must be valid."""
        joined = tuple(np.concatenate([old, fresh], axis=2) for old, fresh in zip(self.tensors, new, strict=True))
        return LayerCache(joined, self.lengths + new[0].shape[2])

    def cut(self, lengths: Integers) -> LayerCache:
        """Return the cache with the first ``lengths[b]`` tokens of row ``b`` alone valid."""
        longest = int(lengths.max())
        return LayerCache(tuple(np.ascontiguousarray(t[:, :, :longest]) for t in self.tensors), lengths)


@dataclass(frozen=True)
class EditLayerOutput:
    """The residual stream behind the edit layer [B, T, D], its keys [B, T, F] and its values [B, T, D]."""

    hidden: Floats
    keys: Floats
    values: Floats


class Rows(Protocol):
    """A matrix [N, D] whose rows can be taken: an array, or one that stays in its file."""

    def __getitem__(self, rows: ArrayLike, /) -> NDArray[Any]:
        """Return the rows [..., D] of an array of numbers [...]."""


@dataclass(frozen=True)
class DecoderParts:
    """What a decoder is made of: its graphs and the constants that they share.

    Attributes
    ----------
    embedding
        [V, D] float16 or float32.
    unembedding
        The vocabulary projection's rows, of the same form; the embedding itself where the two are tied.
    inverse_frequencies
        [head_dim / 2] float32 of the rotary embedding.
    sink
        K and V of the sink token in each layer in turn, [1, n_kv, 1, head_dim].
    mask_value
        What the attention mask adds to a score to hide it.
    fixed_shapes
        Whether the graphs pad every run to one of few shapes: several short ones then cost more than a long one.
    """

    prefix: Runnable
    edit: Runnable
    suffix: Runnable
    head: Runnable
    embedding: Rows
    unembedding: Rows
    inverse_frequencies: Floats
    sink: tuple[Floats, ...]
    shape: ModelShape
    edit_layer: int
    mask_value: float
    fixed_shapes: bool = False


class Decoder:
    """Runs the graphs over rows of tokens and counts the work.

    The sink token is the first entry of every cache, at position 0: no graph ever computes it.

    Attributes
    ----------
    parts
        What it is made of.
    """

    def __init__(self, parts: DecoderParts, meter: CostMeter) -> None:
        self.parts = parts
        self._meter = meter
        self.prefix_layers = parts.edit_layer + 1
        self.suffix_layers = parts.shape.n_layers - self.prefix_layers

    def metered(self, meter: CostMeter) -> Decoder:
        """Return the same decoder counting into another meter."""
        return Decoder(self.parts, meter)

    def sink_caches(self, batch: int) -> tuple[LayerCache, LayerCache]:
        """Return the caches of the prefix and of the suffix that hold the sink token alone."""
        lengths = np.ones(batch, np.int64)
        rows = tuple(np.repeat(t, batch, axis=0) for t in self.parts.sink)
        split = 2 * self.prefix_layers
        return LayerCache(rows[:split], lengths), LayerCache(rows[split:], lengths)

    def run_prefix(self, ids: Integers, cache: LayerCache) -> tuple[Floats, tuple[Floats, ...]]:
        """Return the residual before the edit layer's MLP [B, T, D], and the new K and V.

        Raises
        ------
        RequestError
            When the text is longer than the bundle's context.
        """
        longest = int(cache.lengths.max()) + ids.shape[1]
        if longest > self.parts.shape.context:
            raise RequestError(
                f"the text has {longest} tokens, the bundle's context is {self.parts.shape.context}: shorten it"
            )
        hidden = self.parts.embedding[ids].astype(np.float32)
        return self._run_segment(self.parts.prefix, hidden, cache, self.prefix_layers)

    def unembedding(self, tokens: Integers) -> Floats:
        """Return the rows [k, D] of the vocabulary projection for k tokens."""
        return self.parts.unembedding[tokens].astype(np.float32)

    def run_edit(self, residual: Floats, slots: Slots) -> EditLayerOutput:
        """Run the edit layer's MLP with the slots applied."""
        feeds = {
            "residual": residual,
            "directions": slots.directions,
            "deltas": slots.deltas,
            "gates": slots.gates,
        }
        out = self.parts.edit.run(feeds, self._meter)
        return EditLayerOutput(out["hidden_out"], out["key"], out["value"])

    def run_suffix(self, hidden: Floats, cache: LayerCache) -> tuple[Floats, tuple[Floats, ...]]:
        """Return the normalised last hidden states [B, T, D], and the new K and V."""
        return self._run_segment(self.parts.suffix, hidden, cache, self.suffix_layers)

    def run_head(self, hidden: Floats) -> Floats:
        """Return logits [M, V] of hidden states [M, D]."""
        return self.parts.head.run({"hidden": hidden}, self._meter)["logits"]

    def segment_inputs(self, cache: LayerCache, tokens: int) -> tuple[Floats, ...]:
        """Return what a segment takes beside the hidden states of ``tokens`` new tokens a row.

        Returns
        -------
        tuple
            The rotary factors cos and sin [B, 1, T, head_dim], the attention mask [B, 1, T, P + T], and the cache.
        """
        positions = cache.lengths[:, None] + np.arange(tokens)
        cos, sin = rotary_factors(positions, self.parts.inverse_frequencies)
        return cos, sin, attention_mask(cache.lengths, cache.past, tokens, self.parts.mask_value), *cache.tensors

    def _run_segment(
        self, graph: Runnable, hidden: Floats, cache: LayerCache, layers: int
    ) -> tuple[Floats, tuple[Floats, ...]]:
        batch, tokens, _ = hidden.shape
        values: list[Any] = [hidden, *self.segment_inputs(cache, tokens)]
        out = graph.run(dict(zip(graph.inputs, values, strict=True)), self._meter)
        self._meter.token_layers += batch * tokens * layers
        ordered = [out[name] for name in graph.outputs]
        return ordered[0], tuple(ordered[1:])
