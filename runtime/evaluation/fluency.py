"""Fluency: whether the edited model still writes text, or repeats itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..reader import Reader

Floats = NDArray[np.float32]
_WEIGHTS = {2: 2 / 3, 3: 4 / 3}
_TOP = 5


def fluency(reader: Reader, prompt: str, tokens: int, seed: Sequence[int]) -> float:
    """Return the entropy of a sampled continuation of ``prompt``, in bits.

    "GE" of Meng et al. 2022 (ROME, section 3.3), after Zhang et al. 2018: a text that repeats itself has a low one.
    They take words of text behind several prompts; here it is the model's tokens, behind the bare prompt.

    Parameters
    ----------
    tokens
        Length of the continuation.
    seed
        What the sampling starts from: the same for both models that are compared.
    """
    return n_gram_entropy(sampled(reader, prompt, tokens, seed))


def sampled(reader: Reader, prompt: str, tokens: int, seed: Sequence[int]) -> tuple[int, ...]:
    """Return the continuation that `fluency` is told by."""
    return reader.continuation(prompt, tokens, top_sampler(np.random.default_rng(seed)))


def n_gram_entropy(tokens: Sequence[Hashable]) -> float:
    """Return the weighted mean of the entropies of bigrams (2/3) and trigrams (4/3), in bits."""
    weighted = [weight * _entropy(tokens, n) for n, weight in _WEIGHTS.items()]
    return sum(weighted) / len(weighted)


def top_sampler(rng: np.random.Generator, top: int = _TOP) -> Callable[[Floats], int]:
    """Return a chooser that draws one of the ``top`` most probable tokens by their probabilities."""

    def choose(logits: Floats) -> int:
        best = np.argsort(-logits, kind="stable")[:top]
        weights = np.exp(logits[best].astype(np.float64) - float(logits[best[0]]))
        return int(rng.choice(best, p=weights / weights.sum()))

    return choose


def _entropy(tokens: Sequence[Hashable], n: int) -> float:
    counts = np.array(list(Counter(zip(*(tokens[i:] for i in range(n)), strict=False)).values()), np.float64)
    if not counts.size:
        return 0.0
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # no negative zero
