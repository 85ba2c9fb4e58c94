"""A graph of symbolic shapes as several of fixed ones: an NPU takes no others.

A run goes to the variant that takes it in the fewest dispatches. The batch is cut into the variant's rows, all that is
short is padded, and what comes of the padding is cut off again. Padding changes no result: a row, and in the edit layer
and the head a token, depends on no other, and the mask hides padded tokens and padded entries of a cache as it hides
those of a shorter row. Hidden everywhere, a padded token attends to all alike, which is finite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .costs import CostMeter
from .errors import RequestError
from .execution import Feeds, Fetched, Graph

OpenGraph = Callable[[Mapping[str, int]], Graph]
"""Opens the graph with its symbolic axes fixed to sizes."""


@dataclass(frozen=True)
class Variant:
    """One fixed shape of a decoder segment: ``tokens`` new tokens behind ``past`` cached ones in ``batch`` rows."""

    batch: int
    tokens: int
    past: int

    @property
    def axes(self) -> dict[str, int]:
        """The sizes by the graph's axes."""
        total = self.past + self.tokens
        return {"batch": self.batch, "tokens": self.tokens, "past": self.past, "total": total}

    @property
    def work(self) -> int:
        """Pairs of tokens that one dispatch attends over."""
        return self.batch * self.tokens * (self.past + self.tokens)


class StaticSegment:
    """A decoder segment in variants. It has the interface of `Graph`; a session is made when first needed, and kept.

    Parameters
    ----------
    name
        The graph's file name.
    inputs, outputs
        As `bundle_layout.segment_names` gives them.
    variants
        The shapes that there are.
    mask_value
        What hides a token.
    open_graph
        Makes a session.
    """

    def __init__(
        self,
        name: str,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        variants: Sequence[Variant],
        mask_value: float,
        open_graph: OpenGraph,
    ) -> None:
        self.name, self.inputs, self.outputs = name, inputs, outputs
        self._variants = tuple(sorted(variants, key=lambda variant: variant.work))
        self._mask_value = mask_value
        self._graph = cache(lambda variant: open_graph(variant.axes))

    def run(self, feeds: Feeds, meter: CostMeter | None = None) -> Fetched:
        """Evaluate the segment.

        Raises
        ------
        RequestError
            When no variant is long enough.
        NumericsError
            When an output is not finite.
        """
        hidden, cos, sin, mask, *caches = (feeds[name] for name in self.inputs)
        batch, tokens = hidden.shape[:2]
        past = mask.shape[-1] - tokens
        variant = self.variant(batch, tokens, past)
        graph = self._graph(variant)
        parts = []
        for start in range(0, batch, variant.batch):
            rows = slice(start, start + variant.batch)
            values = [
                _padded(hidden[rows], {0: variant.batch, 1: variant.tokens}),
                _padded(cos[rows], {0: variant.batch, 2: variant.tokens}),
                _padded(sin[rows], {0: variant.batch, 2: variant.tokens}),
                self._mask(mask[rows], past, variant),
                *(_padded(cache[rows], {0: variant.batch, 2: variant.past}) for cache in caches),
            ]
            out = graph.run(dict(zip(self.inputs, values, strict=True)), meter)
            kept = len(hidden[rows])
            first, *new = (out[name][:kept] for name in self.outputs)
            parts.append([first[:, :tokens], *(value[:, :, :tokens] for value in new)])
        joined = (np.concatenate(pieces) for pieces in zip(*parts, strict=True))
        return dict(zip(self.outputs, joined, strict=True))

    def variant(self, batch: int, tokens: int, past: int) -> Variant:
        """Return the variant that takes such a run in the fewest dispatches, the smallest of them.

        Raises
        ------
        RequestError
            When none is long enough.
        """
        held = [variant for variant in self._variants if variant.tokens >= tokens and variant.past >= past]
        if not held:
            longest, most = (max(getattr(v, axis) for v in self._variants) for axis in ("tokens", "past"))
            raise RequestError(
                f"{tokens} tokens behind {past} fit no shape of {self.name} ({longest} behind {most} at most): "
                "shorten the text, or use --ep cpu"
            )
        return min(held, key=lambda variant: -(-batch // variant.batch))  # they are sorted by work

    def placement(self) -> dict[str, int]:
        """Return how many nodes of the smallest variant each provider runs."""
        return self._graph(self._variants[0]).placement()

    def _mask(self, mask: NDArray[Any], past: int, variant: Variant) -> NDArray[Any]:
        """Return the mask [b, 1, t, p + t] of a variant: padding in the cache stands between it and the new tokens."""
        rows, _, tokens, _ = mask.shape
        shape = (variant.batch, 1, variant.tokens, variant.past + variant.tokens)
        wide = np.full(shape, self._mask_value, mask.dtype)
        wide[:rows, :, :tokens, :past] = mask[..., :past]
        wide[:rows, :, :tokens, variant.past : variant.past + tokens] = mask[..., past:]
        return wide


class StaticRows:
    """The edit layer or the head, which take each token by itself, in variants of so many tokens; as `StaticSegment`.

    Parameters
    ----------
    inputs, outputs
        The first input has the tokens, [..., D]; the others go into every run as they are.
    sizes
        The numbers of tokens that there are.
    axes
        From a number of tokens to the sizes of the graph's axes.
    """

    def __init__(
        self,
        name: str,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        sizes: Sequence[int],
        axes: Callable[[int], Mapping[str, int]],
        open_graph: OpenGraph,
    ) -> None:
        self.name, self.inputs, self.outputs = name, inputs, outputs
        self._sizes = tuple(sorted(sizes))
        self._graph = cache(lambda size: open_graph(axes(size)))

    def run(self, feeds: Feeds, meter: CostMeter | None = None) -> Fetched:
        """Evaluate the graph.

        Raises
        ------
        NumericsError
            When an output is not finite.
        """
        first, *rest = self.inputs
        given = feeds[first]
        tokens = given.reshape(-1, given.shape[-1])
        size = min(self._sizes, key=lambda size: -(-len(tokens) // size))
        graph = self._graph(size)
        parts = []
        for start in range(0, len(tokens), size):
            part = tokens[start : start + size]
            values = _padded(part, {0: size}).reshape(*(1,) * (given.ndim - 2), size, -1)
            out = graph.run({first: values, **{name: feeds[name] for name in rest}}, meter)
            parts.append([out[name].reshape(size, -1)[: len(part)] for name in self.outputs])
        joined = (np.concatenate(pieces) for pieces in zip(*parts, strict=True))
        return {name: value.reshape(*given.shape[:-1], -1) for name, value in zip(self.outputs, joined, strict=True)}

    def placement(self) -> dict[str, int]:
        """Return how many nodes of the smallest variant each provider runs."""
        return self._graph(self._sizes[0]).placement()


def _padded(array: NDArray[Any], sizes: Mapping[int, int]) -> NDArray[Any]:
    """Return an array with zeros behind, so that the axes named have their sizes."""
    widths = [(0, sizes.get(axis, length) - length) for axis, length in enumerate(array.shape)]
    return np.pad(array, widths) if any(width for _, width in widths) else np.ascontiguousarray(array)
