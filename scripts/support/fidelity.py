"""How far the read-outs of a search are from the uncached ones, while it runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobiedit.runtime import Bundle, EditConfig, PrefixCache
from mobiedit.runtime.edit_problem import EditProblem
from mobiedit.runtime.evaluation import ForeignSearch
from mobiedit.runtime.prompt_rows import EditRequest
from mobiedit.runtime.search import SearchResult, SearchTask

from .captured import capture_task

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Fidelity:
    """Read-outs at one delta, against the uncached ones: mean cosine of the hidden states, and relative error."""

    cosine: float
    error: float

    @staticmethod
    def of(readouts: Floats, uncached: Floats) -> Fidelity:
        """Compare hidden states [..., D]."""
        products = (readouts * uncached).sum(-1)
        norms = np.linalg.norm(readouts, axis=-1) * np.linalg.norm(uncached, axis=-1)
        error = np.linalg.norm(readouts - uncached) / np.linalg.norm(uncached)
        return Fidelity(float((products / norms).mean()), float(error))


class WatchedProblem:
    """An edit problem whose read-outs are compared with another's: at the first delta of each run."""

    def __init__(self, problem: EditProblem, reference: EditProblem) -> None:
        self._problem = problem
        self._reference = reference
        self.seen: list[Fidelity] = []

    def readouts(self, deltas: Floats) -> tuple[Floats, Floats]:
        """Run one forward for each delta; see `EditProblem.readouts`."""
        found = self._problem.readouts(deltas)
        self.seen.append(Fidelity.of(found[0][:1], self._reference.readouts(deltas[:1])[0]))
        return found

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all else is the problem's own
        return getattr(self._problem, name)


def watched_search(bundle: Bundle, request: EditRequest, config: EditConfig) -> tuple[ForeignSearch, list[Fidelity]]:
    """Return the optimizer's own search watched, and the list of what is seen.

    The uncached forwards are not in the search's counts, but in its seconds.
    """
    reference = capture_task(bundle, request, replace(config, prefix_cache=PrefixCache.OFF)).problem
    search = bundle.search_for(config)
    seen: list[Fidelity] = []

    def watched(task: SearchTask) -> SearchResult:
        problem = WatchedProblem(task.problem, reference)
        found = search(replace(task, problem=problem))
        seen.extend(problem.seen)
        return found

    return ForeignSearch(config.optimizer.value, {}, watched), seen
