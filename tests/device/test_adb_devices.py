"""Which devices adb sees, and which one is meant."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mobiedit.device.adb_devices import Device, choose, devices, parse_devices
from mobiedit.device.adb_program import AdbProgram
from mobiedit.device.errors import DeviceError
from tests.device.adbd.server import AdbServer
from tests.device.conftest import AdbDevice


@pytest.fixture
def alone(adb_server: AdbServer) -> None:
    """Skip where a real device is plugged in: these tests count what adb sees."""
    if seen := devices(adb_server.adb):
        pytest.skip(f"a device is attached to this machine: {seen}")


LISTED = """* daemon not running; starting now at tcp:5037
* daemon started successfully
List of devices attached
0123456789ABCDEF       device usb:1-2 product:husky model:Pixel_8_Pro device:husky transport_id:1
192.168.1.7:5555       offline transport_id:4
emulator-5554          unauthorized usb:1-3 transport_id:2
R58M                   no permissions (user in plugdev group; are your udev rules wrong?); see [http://x/y] usb:1-4

"""


def test_every_device_is_read_when_adb_lists_several_states() -> None:
    found = parse_devices(LISTED)
    assert [(device.serial, device.state) for device in found] == [
        ("0123456789ABCDEF", "device"),
        ("192.168.1.7:5555", "offline"),
        ("emulator-5554", "unauthorized"),
        ("R58M", "no permissions"),
    ]
    assert found[0].details == {
        "usb": "1-2",
        "product": "husky",
        "model": "Pixel_8_Pro",
        "device": "husky",
        "transport_id": "1",
    }
    assert [device.remedy is None for device in found] == [True, False, False, False]


def test_there_is_none_when_adb_lists_none() -> None:
    assert parse_devices("List of devices attached\n\n") == []
    assert parse_devices("") == []


def test_a_state_has_a_remedy_when_it_is_an_unknown_one() -> None:
    assert Device("x", "dreaming").remedy


def test_none_is_refused_when_adb_sees_no_device(alone: None, make_device: Callable[..., AdbDevice]) -> None:
    device = make_device(connect=False)
    with pytest.raises(DeviceError, match=r"adb sees no device: connect one"):
        choose(device.server.adb)
    with pytest.raises(DeviceError, match=r"adb sees no device 'x' \(it sees: none\)"):
        choose(device.server.adb, "x")


def test_the_only_device_is_meant_when_no_serial_is_given(alone: None, adb_device: AdbDevice) -> None:
    chosen = choose(adb_device.server.adb)
    assert chosen.serial == adb_device.daemon.serial
    assert chosen.details["model"] == "board"
    assert choose(adb_device.server.adb, chosen.serial) == chosen


def test_a_serial_is_demanded_when_there_are_two_devices(alone: None, make_device: Callable[..., AdbDevice]) -> None:
    one, two = make_device("one"), make_device("two")
    with pytest.raises(DeviceError, match="several devices") as refused:
        choose(one.server.adb)
    assert one.daemon.serial in str(refused.value)
    assert two.daemon.serial in str(refused.value)
    for device in (one, two):
        assert choose(one.server.adb, device.daemon.serial).details["model"] == device.daemon.model
        device.transport.run(["sh", "-c", 'echo "$1" > here', "sh", device.daemon.model])
    assert (one.root / "here").read_text() == "one\n"
    assert (two.root / "here").read_text() == "two\n"


def test_a_device_is_refused_when_it_accepts_no_key(make_device: Callable[..., AdbDevice]) -> None:
    device = make_device(connect=False)
    device.daemon.faults.unauthorised = True
    device.server.connect(device.daemon)
    with pytest.raises(DeviceError, match=r"in the state '(unauthorized|authorizing)': (unlock it|wait)"):
        choose(device.server.adb, device.daemon.serial)


def test_a_device_is_refused_when_it_is_in_recovery(alone: None, make_device: Callable[..., AdbDevice]) -> None:
    device = make_device(connect=False)
    device.daemon.faults.banner = "recovery"
    device.server.connect(device.daemon)
    with pytest.raises(DeviceError, match="'recovery': start it normally"):
        choose(device.server.adb)


def test_a_device_is_offline_when_its_link_was_cut(alone: None, adb_device: AdbDevice) -> None:
    adb_device.daemon.faults.silent = True  # so that it does not come back by itself
    adb_device.daemon.cut()
    adb_device.transport.adb.call(["-s", adb_device.daemon.serial, "shell", "true"])  # adb notices
    assert [device.state for device in devices(adb_device.server.adb)] == ["offline"]
    with pytest.raises(DeviceError, match="'offline': unplug it"):
        choose(adb_device.server.adb)


def test_adb_is_asked_in_vain_when_it_fails() -> None:
    with pytest.raises(DeviceError, match="cannot list devices"):
        devices(AdbProgram("/bin/false"))
