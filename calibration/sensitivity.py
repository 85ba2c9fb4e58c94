"""Which groups of activations bear 8 bits: each measured alone, then the largest set within a budget."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Divergence:
    """How far predictions have moved, mean over tokens, in nats.

    Attributes
    ----------
    kl
        Kullback-Leibler divergence of the next token's distribution from the FP32 model's.
    nll_change
        What is added to the text's NLL.
    """

    kl: float
    nll_change: float

    @property
    def cost(self) -> float:
        """The larger of the two: they agree in the mean, but on little text the NLL may fall by chance."""
        return max(self.kl, self.nll_change)


@dataclass(frozen=True)
class Assignment:
    """Groups at 8 bits, the least sensitive ones of all.

    Attributes
    ----------
    alone
        The divergence of each group alone at 8 bits.
    chosen
        The groups that get 8 bits, the least sensitive first.
    joint
        The divergence of all of them together; within the budget.
    """

    alone: dict[str, Divergence]
    chosen: tuple[str, ...]
    joint: Divergence


def assign_eight_bits(
    groups: Sequence[str],
    measure_alone: Callable[[Collection[str]], Divergence],
    measure_joint: Callable[[Collection[str]], Divergence],
    budget: float,
    advance: Callable[[int], None] = lambda measurements: None,
) -> Assignment:
    """Give 8 bits to as many groups as the budget allows, the least sensitive first.

    The number is found by bisection over measured sets, about log2(groups) of them. What is taken was measured as a
    whole: sensitivities do not simply add up.

    Parameters
    ----------
    measure_alone, measure_joint
        Groups at 8 bits to the divergence; the second may take more text.
    budget
        Largest cost of the joint set, nats a token.
    """
    alone = {}
    for group in groups:
        alone[group] = measure_alone((group,))
        advance(1)
    order = sorted(groups, key=lambda group: (alone[group].kl, group))
    fits, exceeds, joint = 0, len(order) + 1, Divergence(0.0, 0.0)
    while exceeds - fits > 1:
        count = (fits + exceeds) // 2
        measured = measure_joint(order[:count])
        if measured.cost <= budget:
            fits, joint = count, measured
        else:
            exceeds = count
        advance(1)
    return Assignment(alone, tuple(order[:fits]), joint)


def divergence(
    reference: Sequence[NDArray[np.float32]], found: Sequence[NDArray[np.float32]], texts: Sequence[Sequence[int]]
) -> Divergence:
    """Return the divergence of log-probabilities from the reference's.

    Parameters
    ----------
    reference, found
        Of each text, [T, V] log-probabilities of the token behind each of its tokens.
    texts
        The tokens.
    """
    kl, changes = [], []
    for wanted, given, ids in zip(reference, found, texts, strict=True):
        kl.append((np.exp(wanted) * (wanted - given)).sum(axis=-1))
        following = np.asarray(ids[1:], np.int64)[:, None]
        changes.append(np.take_along_axis((wanted - given)[:-1], following, axis=-1)[:, 0])
    return Divergence(float(np.concatenate(kl).mean()), float(np.concatenate(changes).mean()))
