"""Sessions in stages: the graphs of one stage are in memory, those of the others are not."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence

from .bundle_layout import graph_file
from .costs import CostMeter
from .execution import Feeds, Fetched, Runnable
from .heap import release_freed_memory

OpenRunnable = Callable[[], Runnable]

STAGES = (("prefix",), ("edit",), ("head", "suffix"))
"""Graphs that an edit needs at the same time. The head opens first: while it is packed it is in memory twice."""

ONE_BY_ONE = (("prefix",), ("edit",), ("suffix",), ("head",))
"""For texts that pass one graph after another."""

OPENING_ORDER = ("head", "prefix", "edit", "suffix")
"""Of graphs that are all open at once, for the same reason."""


class GraphStages:
    """Keeps the graphs of one stage open.

    Parameters
    ----------
    openers
        Makes each graph's sessions, by name.
    stages
        The names of the graphs that are open together.
    """

    def __init__(self, openers: Mapping[str, OpenRunnable], stages: Sequence[Sequence[str]] = STAGES) -> None:
        self._openers = openers
        self._stages = stages
        self._open: dict[str, Runnable] = {}
        self.opened = 0

    def graphs(self) -> dict[str, Runnable]:
        """Return every graph by name, each opened when it is first run."""
        return {name: StagedGraph(name, graph_file(name), self) for name in self._openers}

    def graph(self, name: str) -> Runnable:
        """Return a graph with its sessions; those of other stages are closed first."""
        if name not in self._open:
            self.close()
            (stage,) = (stage for stage in self._stages if name in stage)
            for each in stage:
                self._open[each] = self._openers[each]()
            self.opened += 1
        return self._open[name]

    def close(self) -> None:
        """Close every session, and give its memory back."""
        self._open.clear()
        gc.collect()  # a session in a cycle would outlive its stage
        release_freed_memory()


class StagedGraph:
    """A graph of a stage: its sessions are made when it is first run, and given up when another stage is.

    Parameters
    ----------
    name
        In `STAGES`.
    """

    def __init__(self, name: str, file_name: str, stages: GraphStages) -> None:
        self._graph = name
        self._stages = stages
        self.name = file_name

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of its inputs, in order."""
        return self._stages.graph(self._graph).inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of its outputs, in order."""
        return self._stages.graph(self._graph).outputs

    def run(self, feeds: Feeds, meter: CostMeter | None = None) -> Fetched:
        """Evaluate it, and count what that took into the meter."""
        return self._stages.graph(self._graph).run(feeds, meter)

    def placement(self) -> dict[str, int]:
        """Return how many nodes each provider runs."""
        return self._stages.graph(self._graph).placement()
