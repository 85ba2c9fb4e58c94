"""Choose the MatMul activations that get 8 bits, by what that costs on calibration text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobiedit.calibration.activation_ranges import TensorRange
from mobiedit.calibration.sensitivity import Assignment, Divergence, assign_eight_bits, divergence
from mobiedit.runtime.bundle_layout import graph_file
from mobiedit.runtime.costs import CostMeter
from mobiedit.runtime.decoder import Decoder, DecoderParts, Slots
from mobiedit.runtime.generation import Generator
from mobiedit.runtime.readout_loss import log_softmax

from .fake_quantisation import SwitchedGraph
from .matmul_groups import MatMulGroup, operand_share

ALONE_TEXTS = 4
"""Of the texts, those on which each group alone is measured: there are six groups a layer."""

FILLED = 0.7
"""Of the budget: the rest is for the 8-bit weights and for text that was not measured."""


@dataclass(frozen=True)
class EightBits:
    """The groups whose activations get 8 bits, and what the bundle says of the choice."""

    groups: tuple[MatMulGroup, ...]
    evidence: dict[str, Any]


def choose_eight_bits(
    parts: DecoderParts,
    work: Path,
    groups: Sequence[MatMulGroup],
    ranges: Mapping[str, Mapping[str, TensorRange]],
    texts: Sequence[Sequence[int]],
    slots: Slots,
    budget: float,
    advance: Callable[[int], None] = lambda measurements: None,
) -> EightBits:
    """Measure each group in the FP32 graphs and choose as many as the budget allows.

    Parameters
    ----------
    parts
        The FP32 decoder; its graphs are replaced by switched ones.
    work
        The folder of the FP32 graphs.
    groups
        Of all graphs that are quantised.
    ranges
        Ranges at 8 bits, by graph and tensor.
    texts
        Tokens of calibration text; those of one token say nothing and are left out.
    budget
        What the written graphs may add to the NLL, nats a token; `FILLED` of it is given to the joint cost.
    """
    on: set[str] = set()
    switched = {
        graph: SwitchedGraph(work / graph_file(graph), [each for each in groups if each.graph == graph], of, on)
        for graph, of in ranges.items()
    }
    generator = Generator(Decoder(replace(parts, **switched), CostMeter()), slots)
    texts = [text for text in texts if len(text) > 1]
    reference = _log_probabilities(generator, texts)

    def measure(some: Sequence[Sequence[int]]) -> Callable[[Collection[str]], Divergence]:
        def of(names: Collection[str]) -> Divergence:
            on.update(names)
            try:
                return divergence(reference[: len(some)], _log_probabilities(generator, some), some)
            finally:
                on.clear()

        return of

    names = [group.name for group in groups]
    assignment = assign_eight_bits(names, measure(texts[:ALONE_TEXTS]), measure(texts), FILLED * budget, advance)
    chosen = tuple(group for group in groups if group.name in set(assignment.chosen))
    return EightBits(chosen, {"budget": budget, **_evidence(assignment), **shares(groups, chosen)})


def shares(groups: Sequence[MatMulGroup], chosen: Sequence[MatMulGroup]) -> dict[str, Any]:
    """Return how many MatMul activations there are, and how many of them, and which groups, have 8 bits."""
    return {
        "operands": sum(group.operands for group in groups),
        "eight_bit_operands": sum(group.operands for group in chosen),
        "share": operand_share(groups, chosen),
        "eight_bits": [group.name for group in chosen],
    }


def _evidence(assignment: Assignment) -> dict[str, Any]:
    alone = {name: asdict(each) for name, each in assignment.alone.items()}
    return {"joint": asdict(assignment.joint), "alone": alone}


def _log_probabilities(generator: Generator, texts: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
    return [log_softmax(generator.all_logits(text)) for text in texts]
