"""The meter's counts, and the process's memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mobiedit.runtime.costs import Cost, CostMeter, peak_rss_bytes

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="/proc is of Linux")


def test_cost_has_the_counts_up_to_now_when_work_goes_on() -> None:
    meter = CostMeter()
    start = meter.cost()
    assert (start.forwards, start.token_layers) == (0, 0)
    meter.forwards += 3
    meter.token_layers += 40
    first = meter.cost()
    meter.forwards += 1
    assert (first.forwards, first.token_layers) == (3, 40)
    second = meter.cost()
    assert (second.forwards, second.token_layers) == (4, 40)
    assert 0 <= start.wall_s <= first.wall_s <= second.wall_s
    assert 0 < start.peak_rss_bytes <= first.peak_rss_bytes <= second.peak_rss_bytes


def test_meters_count_apart_when_there_are_two() -> None:
    one, two = CostMeter(), CostMeter()
    one.forwards += 1
    assert (one.cost().forwards, two.cost().forwards) == (1, 0)


def test_cost_is_plain_data_when_it_is_written() -> None:
    assert Cost(1, 2, 0.5, 4, 5, 6).to_dict() == {
        **{"forwards": 1, "token_layers": 2, "wall_s": 0.5, "peak_rss_bytes": 4},
        **{"dispatches": 5, "io_bytes": 6},
    }


def test_cost_has_no_dispatches_when_an_earlier_version_wrote_it() -> None:
    earlier = {"forwards": 1, "token_layers": 2, "wall_s": 0.5, "peak_rss_bytes": 4}
    assert Cost(**earlier) == Cost(1, 2, 0.5, 4, 0, 0)


@linux_only
def test_peak_rss_is_the_kernels_high_water_mark_when_on_linux() -> None:
    lines = Path("/proc/self/status").read_text().splitlines()
    (kibibytes,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    # The kernel counts pages lazily in each thread; a wrong unit would be off by 1024.
    assert peak_rss_bytes() == pytest.approx(kibibytes * 1024, rel=0.05)


@linux_only
def test_peak_rss_takes_the_number_as_bytes_when_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    kibibytes = peak_rss_bytes() / 1024
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_rss_bytes() == pytest.approx(kibibytes, rel=0.05)


@linux_only
def test_peak_rss_is_the_processs_own_when_its_parent_is_large() -> None:
    block = b"\1" * (256 * 2**20)
    script = "from mobiedit.runtime.costs import peak_rss_bytes; print(peak_rss_bytes())"
    child = int(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout)
    assert child < len(block) < peak_rss_bytes()


def test_peak_rss_stays_when_memory_is_freed() -> None:
    before = peak_rss_bytes()
    block = b"\1" * (64 * 2**20)  # written, so that it is resident
    during = peak_rss_bytes()
    del block
    assert before <= during <= peak_rss_bytes()
