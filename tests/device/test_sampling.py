from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobiedit.device.errors import TransportError
from mobiedit.device.local import LocalTransport
from mobiedit.device.sampling import UNAVAILABLE, Sample, Sampler, parse, summarise
from mobiedit.device.transport import Completed

BATTERY = "class/power_supply/battery"
PACKAGE = "class/powercap/intel-rapl:0"


def samples(*moments: tuple[float, dict[str, object]]) -> list[Sample]:
    return [Sample(seconds, {path: str(value) for path, value in values.items()}) for seconds, values in moments]


def joules(*moments: tuple[float, dict[str, object]]) -> list[float]:
    found = summarise(samples(*moments))["energy"]
    return [] if found == UNAVAILABLE else [each["joules"] for each in found]


@pytest.mark.parametrize("sign", [1, -1])
def test_battery_power_is_integrated_whatever_the_sign(sign: int) -> None:
    def moment(milliamperes: int) -> dict[str, object]:
        return {
            f"{BATTERY}/voltage_now": 4_000_000,
            f"{BATTERY}/current_now": sign * milliamperes * 1000,
            f"{BATTERY}/status": "Discharging",
        }

    # 4 V at 0.5 A, then 1 A: 2 W to 4 W over 2 s, then 4 W for 3 s.
    assert joules((0, moment(500)), (2, moment(1000)), (5, moment(1000))) == [pytest.approx(6 + 12)]


def test_battery_energy_when_it_states_no_current() -> None:
    # 1,000 uWh are 3.6 J.
    assert joules((0, {f"{BATTERY}/energy_now": 5000}), (9, {f"{BATTERY}/energy_now": 4000})) == [pytest.approx(3.6)]


def test_battery_charge_when_it_states_neither() -> None:
    # 1,000 uAh at 4 V are 14.4 J.
    first = {f"{BATTERY}/charge_now": 9000, f"{BATTERY}/voltage_now": 4_100_000}
    last = {f"{BATTERY}/charge_now": 8000, f"{BATTERY}/voltage_now": 3_900_000}
    assert joules((0, first), (9, last)) == [pytest.approx(14.4)]


def test_battery_is_unavailable_while_it_is_charged() -> None:
    values = {f"{BATTERY}/voltage_now": 4_000_000, f"{BATTERY}/current_now": 10**6, f"{BATTERY}/status": "Charging"}
    assert joules((0, values), (9, values)) == []
    used = {**values, f"{BATTERY}/status": "Discharging"}
    assert joules((0, used), (4, values), (9, used)) == []


def test_packages_are_counted_once_and_counters_wrap() -> None:
    limit = {f"{PACKAGE}/max_energy_range_uj": 10_000_000, f"{PACKAGE}/name": "package-0"}
    part = "class/powercap/intel-rapl:0:0/energy_uj"
    moments = [
        (0.0, {f"{PACKAGE}/energy_uj": 9_000_000, part: 1, **limit}),
        (1.0, {f"{PACKAGE}/energy_uj": 1_000_000, part: 500_000, **limit}),
        (2.0, {f"{PACKAGE}/energy_uj": 4_000_000, part: 900_000, **limit}),
    ]
    (energy,) = summarise(samples(*moments))["energy"]
    assert energy == {"source": "intel-rapl:0 (package-0)", "joules": 5.0, "method": "difference of energy_uj"}


def test_a_counter_that_wraps_without_a_limit_is_unavailable() -> None:
    assert joules((0, {f"{PACKAGE}/energy_uj": 9}), (1, {f"{PACKAGE}/energy_uj": 3})) == []


def test_temperatures_are_ranges_in_degrees() -> None:
    zone = "class/thermal/thermal_zone3"
    found = summarise(
        samples(
            (0, {f"{zone}/temp": 41_500, f"{zone}/type": "cpu-1-2", f"{BATTERY}/temp": 301}),
            (1, {f"{zone}/temp": 52_000, f"{zone}/type": "cpu-1-2", f"{BATTERY}/temp": "broken"}),
        )
    )
    assert found["temperatures"] == [
        {"sensor": "battery", "low": 30.1, "high": 30.1},
        {"sensor": "thermal_zone3 (cpu-1-2)", "low": 41.5, "high": 52.0},
    ]


def test_everything_is_unavailable_when_nothing_was_read() -> None:
    expected = {"samples": 0, "seconds": 0.0, "energy": UNAVAILABLE, "temperatures": UNAVAILABLE}
    assert summarise([]) == expected
    assert summarise(samples((0, {}), (3, {}))) == {**expected, "samples": 2, "seconds": 3.0}


@given(st.lists(st.tuples(st.text(), st.text())), st.text())
def test_parsing_takes_whatever_a_device_prints(pairs: list[tuple[str, str]], noise: str) -> None:
    text = "\n".join([noise, *(f"{path}\t{value}" for path, value in pairs)])
    values = parse(text)
    summarise([Sample(0.0, values), Sample(1.0, values)])  # and no more than that: it does not fail


@given(st.lists(st.tuples(st.floats(0.1, 10), st.integers(1, 5 * 10**6)), min_size=2, max_size=8))
def test_battery_joules_lie_between_the_extremes_of_power(steps: list[tuple[float, int]]) -> None:
    moments, seconds = [], 0.0
    for step, current in steps:
        seconds += step
        moments.append((seconds, {f"{BATTERY}/voltage_now": 3_700_000, f"{BATTERY}/current_now": current}))
    (found,) = joules(*moments)
    span, powers = moments[-1][0] - moments[0][0], [3.7 * current / 1e6 for _, current in steps]
    assert min(powers) * span * (1 - 1e-9) <= found <= max(powers) * span * (1 + 1e-9)


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """A folder as Linux has one, with a file that cannot be read and one in a folder with a space."""
    files = {
        "class/thermal/thermal_zone0/type": "cpu thermal\n",
        "class/thermal/thermal_zone0/temp": "45000\n",
        "class/power_supply/BAT 0/status": "Discharging\n",
        "class/power_supply/BAT 0/voltage_now": "12000000\n",
        "class/power_supply/BAT 0/current_now": "1000000",
        "class/powercap/intel-rapl:0/name": "package-0\n",
    }
    for name, text in files.items():
        (tmp_path / "sys" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys" / name).write_text(text)
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").mkdir()
    return tmp_path / "sys"


def test_sampler_reads_a_devices_files(sysfs: Path) -> None:
    sampler = Sampler(LocalTransport(), interval=0.05, folder=str(sysfs))
    sampler.start()
    (sysfs / "class/thermal/thermal_zone0/temp").write_text("47000\n")
    found = sampler.stop()
    assert found["samples"] >= 2
    assert found["missed"] == 0
    assert found["temperatures"] == [{"sensor": "thermal_zone0 (cpu thermal)", "low": 45.0, "high": 47.0}]
    (energy,) = found["energy"]
    assert energy["source"] == "BAT 0"
    assert math.isclose(
        energy["joules"], 12 * found["seconds"], rel_tol=0.05, abs_tol=0.02
    )  # seconds are rounded to 1 ms


def test_sampler_finds_nothing_where_there_is_no_sysfs(tmp_path: Path) -> None:
    sampler = Sampler(LocalTransport(), folder=str(tmp_path / "none"))
    sampler.start()
    assert sampler.stop()["energy"] == UNAVAILABLE


def test_sampler_goes_on_when_the_connection_is_lost() -> None:
    class Lost(LocalTransport):
        def run(self, words: Sequence[str], *, stdin: bytes = b"", timeout: float = 60.0) -> Completed:
            raise TransportError("the link was cut: try again")

    sampler = Sampler(Lost(), interval=0.01)
    sampler.start()
    found = sampler.stop()
    assert found["samples"] == 0
    assert found["missed"] >= 2
