"""Energy and temperatures around a run, from the files that Linux has them in; what a device does not tell is left out.

Units are those of the kernel's ABI (Documentation/ABI/testing/sysfs-class-power, sysfs-class-thermal, and
Documentation/power/powercap): microvolts, microamperes, microwatt-hours, microampere-hours, microjoules; thermal zones
in thousandths, batteries in tenths of a degree Celsius. Some phones' drivers state other units; their figures are then
off by that factor, and nothing here can know it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from .errors import TransportError
from .transport import Transport

UNAVAILABLE = "unavailable"

_FILES = (
    *(f"class/power_supply/*/{name}" for name in ("voltage_now", "current_now", "energy_now", "charge_now")),
    *(f"class/power_supply/*/{name}" for name in ("capacity", "temp", "status")),
    *(f"class/powercap/*/{name}" for name in ("energy_uj", "max_energy_range_uj", "name")),
    *(f"class/thermal/thermal_zone*/{name}" for name in ("type", "temp")),
)
# The first word is the folder that the patterns are in; a file that refuses to be read is passed over.
_READ = (
    'cd "$1" || exit 0; shift; for pattern in "$@"; do for file in $pattern; do '
    'value=; { IFS= read -r value < "$file"; } 2>/dev/null; '
    '[ -n "$value" ] && printf "%s\\t%s\\n" "$file" "$value"; done; done; true'
)


@dataclass(frozen=True)
class Sample:
    """What the files said at one moment.

    Attributes
    ----------
    seconds
        Of the host's monotonic clock.
    values
        What each file has in its first line, by its path below the folder of all (``/sys``).
    """

    seconds: float
    values: dict[str, str]

    def number(self, path: str) -> float | None:
        """Return the number in a file; None when there is none."""
        try:
            return float(self.values[path])
        except (KeyError, ValueError):
            return None


@dataclass(frozen=True)
class Energy:
    """Joules of one source.

    Attributes
    ----------
    source
        The battery or the powercap zone. They may count the same joules: they are not to be added.
    joules
        Used between the first sample and the last.
    method
        How that was computed.
    """

    source: str
    joules: float
    method: str


@dataclass(frozen=True)
class Temperature:
    """The lowest and the highest that a sensor showed, in degrees Celsius."""

    sensor: str
    low: float
    high: float


class Sampler:
    """Reads the files before a run, every few seconds during it, and after it.

    Parameters
    ----------
    transport
        To the device; its calls are made from a thread of their own.
    interval
        Seconds between two samples.
    folder
        Where the device has ``class``.
    """

    def __init__(self, transport: Transport, interval: float = 3.0, folder: str = "/sys") -> None:
        self._transport, self._interval, self._folder = transport, interval, folder
        self._samples: list[Sample] = []
        self._missed = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)

    def start(self) -> None:
        """Take the first sample and go on in the background."""
        self._take()
        self._thread.start()

    def stop(self) -> dict[str, Any]:
        """Take the last sample and return what they say, as JSON values; see `summarise`."""
        self._ended.set()
        self._thread.join()
        self._take()
        return {**summarise(self._samples), "missed": self._missed}

    def _go_on(self) -> None:
        while not self._ended.wait(self._interval):
            self._take()

    def _take(self) -> None:
        # The run is what matters: a sample that the connection loses is counted, not raised.
        try:
            done = self._transport.run(["sh", "-c", _READ, "sh", self._folder, *_FILES], timeout=30.0)
        except TransportError:
            self._missed += 1
            return
        self._samples.append(Sample(time.monotonic(), parse(done.out.decode("utf-8", "replace"))))


def parse(text: str) -> dict[str, str]:
    """Return the files' first lines by path, from lines of path, tab, value."""
    pairs = (line.partition("\t") for line in text.splitlines())
    return {path: value.strip() for path, tab, value in pairs if tab}


def summarise(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return what samples of one run say: joules and temperatures, or "unavailable"."""
    used = [*_powercap(samples), *_batteries(samples)]
    seen = temperatures(samples)
    return {
        "samples": len(samples),
        "seconds": round(samples[-1].seconds - samples[0].seconds, 3) if samples else 0.0,
        "energy": [asdict(each) for each in used] or UNAVAILABLE,
        "temperatures": [asdict(each) for each in seen] or UNAVAILABLE,
    }


def temperatures(samples: Iterable[Sample]) -> list[Temperature]:
    """Return the range of each sensor's readings, by the sensor's name."""
    readings: dict[str, list[float]] = {}
    for sample in samples:
        for path in sample.values:
            folder, _, name = path.rpartition("/")
            value = sample.number(path)
            if name != "temp" or value is None:
                continue
            device = folder.rpartition("/")[2]
            kind = sample.values.get(f"{folder}/type", "")
            sensor = f"{device} ({kind})" if kind else device
            readings.setdefault(sensor, []).append(value / (10 if "/power_supply/" in path else 1000))
    return [Temperature(sensor, min(values), max(values)) for sensor, values in sorted(readings.items())]


def _powercap(samples: Sequence[Sample]) -> list[Energy]:
    """Return the differences of whole packages' counters; their parts (``intel-rapl:0:0``) are in them already."""
    found = []
    for path in _paths(samples, "energy_uj"):
        folder = path.rpartition("/")[0]
        zone = folder.rpartition("/")[2]
        counts = [count for sample in samples if (count := sample.number(path)) is not None]
        if zone.count(":") != 1 or len(counts) < 2:
            continue
        limit = samples[0].number(f"{folder}/max_energy_range_uj")
        # A counter that went back has started again at its limit; sampled often, no more than once.
        steps = [b - a if b >= a else b - a + limit if limit else None for a, b in pairwise(counts)]
        whole = [step for step in steps if step is not None]
        if len(whole) == len(steps):
            name = samples[0].values.get(f"{folder}/name", zone)
            found.append(Energy(f"{zone} ({name})", sum(whole) / 1e6, "difference of energy_uj"))
    return found


def _batteries(samples: Sequence[Sample]) -> list[Energy]:
    """Return what each battery gave, unless it was being charged: then its current is not what the device uses."""
    paths = {path for sample in samples for path in sample.values if "/power_supply/" in path}
    folders = sorted({path.rpartition("/")[0] for path in paths})
    found = []
    for folder in folders:
        states = {sample.values.get(f"{folder}/status", "Discharging") for sample in samples}
        if states == {"Discharging"} and (energy := _battery(samples, folder)):
            found.append(energy)
    return found


def _battery(samples: Sequence[Sample], folder: str) -> Energy | None:
    """Return what a discharging battery gave, by the finest of its figures."""
    name = folder.rpartition("/")[2]
    series: dict[str, list[tuple[float, float]]] = {}
    for sample in samples:
        volts, amperes = sample.number(f"{folder}/voltage_now"), sample.number(f"{folder}/current_now")
        if volts is not None and amperes is not None:  # drivers disagree about the sign
            series.setdefault("power", []).append((sample.seconds, volts / 1e6 * abs(amperes) / 1e6))
        if (energy := sample.number(f"{folder}/energy_now")) is not None:
            series.setdefault("energy", []).append((sample.seconds, energy * 3600 / 1e6))
        if volts is not None and (charge := sample.number(f"{folder}/charge_now")) is not None:
            series.setdefault("charge", []).append((volts / 1e6, charge * 3600 / 1e6))
    if len(power := series.get("power", [])) > 1:
        joules = sum((p + q) / 2 * (t - s) for (s, p), (t, q) in pairwise(power))
        return Energy(name, joules, "voltage_now x current_now, integrated by the trapezoidal rule")
    if len(energies := series.get("energy", [])) > 1:
        return Energy(name, energies[0][1] - energies[-1][1], "difference of energy_now")
    if len(charges := series.get("charge", [])) > 1:
        volts = sum(volt for volt, _ in charges) / len(charges)
        return Energy(name, (charges[0][1] - charges[-1][1]) * volts, "difference of charge_now x mean voltage_now")
    return None


def _paths(samples: Iterable[Sample], name: str) -> list[str]:
    return sorted({path for sample in samples for path in sample.values if path.rpartition("/")[2] == name})
