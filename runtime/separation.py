"""The least direction that tells a key from others: 1 at its own, and no more than some activation at each of them.

An equality at 0, as EMMET has it (Gupta et al. 2024, arXiv 2403.14236), costs length: a direction that is 0 at a key
near its own is large on all text. Behind a gate an activation below the gate's lower bound is as good as 0, and nearer
to what the direction has anyway.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

INFLATION = 4.0
"""What a direction's mean square on text may grow by. A key that costs more is too near to its own to tell from it."""
_SLACK = 0.02
"""What an activation may be above its bound: many keys alike would be held one by one for less than that."""


def separated(gram: NDArray[Any], own: int, most: NDArray[Any]) -> Doubles:
    """Return weights [n] of ``C^-1 k_i`` for each of n keys: the direction that is 1 at key ``own``.

    Where the direction is more than ``most`` at another key, that becomes an equality: the worst one first, and those
    left out that would lengthen the direction beyond `INFLATION`.

    Parameters
    ----------
    gram
        [n, n] ``k_i^T C^-1 k_j``, in units of the one of ``own``, which is 1.
    most
        [n] the bound for each of the others; of ``own`` it is not read.
    """
    bounds = np.array(most, np.float64)
    bounds[own] = 1
    chosen, solution = [own], np.ones(1)
    refused = np.zeros(len(bounds), bool)
    while True:
        excess = gram[:, chosen] @ solution - bounds
        excess[refused] = excess[chosen] = -np.inf
        worst = int(excess.argmax())
        if not excess[worst] > _SLACK:
            break
        tried = [*chosen, worst]
        try:
            found = np.linalg.solve(gram[np.ix_(tried, tried)], bounds[tried])
        except np.linalg.LinAlgError:  # the same key as another's
            found = np.zeros(len(tried))
        if 0 < float(found @ bounds[tried]) <= INFLATION:
            chosen, solution = tried, found
        else:
            refused[worst] = True
    weights = np.zeros(len(bounds))
    weights[chosen] = solution
    return weights
