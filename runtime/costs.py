"""What an edit costs, in units that can be compared across methods and machines."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path


@dataclass
class CostMeter:
    """Counts work as it is done.

    Attributes
    ----------
    forwards
        Evaluations of all prompt rows for one delta; some rows alone, as many as have the tokens of all, count as one.
    token_layers
        Tokens times decoder layers actually run, padding of rows to one length included.
    dispatches
        Runs of sessions: what an NPU is sent, each with a latency of its own.
    io_bytes
        Inputs and outputs of those runs, padding to fixed shapes included.
    """

    forwards: int = 0
    token_layers: int = 0
    dispatches: int = 0
    io_bytes: int = 0
    _start: float = field(default_factory=time.perf_counter, repr=False)

    def cost(self) -> Cost:
        """Return the totals up to now."""
        seconds = round(time.perf_counter() - self._start, 3)
        return Cost(self.forwards, self.token_layers, seconds, peak_rss_bytes(), self.dispatches, self.io_bytes)


@dataclass(frozen=True)
class Cost:
    """Totals of one operation; ``peak_rss_bytes`` is the process's high-water mark.

    Result files of earlier versions have no dispatches.
    """

    forwards: int
    token_layers: int
    wall_s: float
    peak_rss_bytes: int
    dispatches: int = 0
    io_bytes: int = 0

    def to_dict(self) -> dict[str, float]:
        """Return the fields as plain numbers."""
        return asdict(self)


def total_cost(shared: CostMeter, others: Sequence[CostMeter]) -> Cost:
    """Return the sum of several meters' counts, with the time since ``shared`` was made."""
    counts = ("forwards", "token_layers", "dispatches", "io_bytes")
    sums = {name: sum(getattr(meter, name) for meter in (shared, *others)) for name in counts}
    return replace(shared.cost(), **sums)


def peak_rss_bytes() -> int:
    """Return the largest resident memory of this process, in bytes."""
    if sys.platform == "win32":
        import psutil  # a dependency on Windows only

        return int(psutil.Process().memory_info().peak_wset)
    if sys.platform == "linux":
        # Not getrusage: there a process begins with the mark of the one that started it.
        marks = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
        return int(marks[0].split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
