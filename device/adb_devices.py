"""The devices that adb sees, and the one that is meant."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .adb_failures import AdbFailure
from .adb_program import AdbProgram
from .errors import DeviceError

READY = "device"
"""The state of a device that takes commands."""

_REMEDIES = {
    "offline": "unplug it and plug it in again, or restart its debugging",
    "connecting": "wait a moment, then try again",
    "authorizing": "wait a moment, then try again",
    "unauthorized": "unlock it and allow debugging from this host",
    "no permissions": "add your user to the group plugdev, install android-sdk-platform-tools-common, and log in again",
    "recovery": "start it normally with `adb reboot`",
    "rescue": "start it normally with `adb reboot`",
    "sideload": "start it normally with `adb reboot`",
    "bootloader": "start it normally with `fastboot reboot`",
}
_LINE = re.compile(r"(?P<serial>\S+)\s+(?P<state>no permissions|\S+)(?P<rest>.*)")
_DETAIL = re.compile(r"(?:^|\s)([a-z_]+):(\S+)")


@dataclass(frozen=True)
class Device:
    """A device that adb lists.

    Attributes
    ----------
    serial
        What adb calls it; ``host:port`` where it is reached over a network.
    state
        ``device`` when it takes commands; else what hinders it, as ``offline`` or ``unauthorized``.
    details
        What else adb says: ``product``, ``model``, ``device``, ``transport_id``, ``usb``.
    """

    serial: str
    state: str
    details: dict[str, str] = field(default_factory=dict)

    @property
    def remedy(self) -> str | None:
        """What helps a device that takes no commands; None if it does."""
        if self.state == READY:
            return None
        return _REMEDIES.get(self.state, "see what `adb devices` says of it")


def devices(adb: AdbProgram) -> list[Device]:
    """Return every device that adb lists, in its order, whatever its state.

    Raises
    ------
    TransportError
        If adb's server cannot be started or asked.
    """
    listed = adb.call(["devices", "-l"])
    if listed.code:
        raise AdbFailure.of(listed).error("cannot list devices")
    return parse_devices(listed.out.decode("utf-8", "replace"))


def parse_devices(text: str) -> list[Device]:
    """Return the devices in what ``adb devices -l`` prints; lines of adb itself (``* daemon started``) are left out."""
    lines = text.splitlines()
    header = next((i for i, line in enumerate(lines) if line.startswith("List of devices")), len(lines))
    found = []
    for line in lines[header + 1 :]:
        match = _LINE.fullmatch(line.strip())
        if match and not line.startswith("*"):
            found.append(Device(match["serial"], match["state"], dict(_DETAIL.findall(match["rest"]))))
    return found


def choose(adb: AdbProgram, serial: str | None = None) -> Device:
    """Return the device that is meant: the one with this serial, or the only one.

    Raises
    ------
    DeviceError
        If there is none, several and no serial, or the one that is meant takes no commands.
    TransportError
        If adb cannot be asked.
    """
    listed = devices(adb)
    names = ", ".join(device.serial for device in listed) or "none"
    if serial is not None:
        listed = [device for device in listed if device.serial == serial]
        if not listed:
            raise DeviceError(f"adb sees no device {serial!r} (it sees: {names}): connect it, or name one of these")
    if not listed:
        raise DeviceError("adb sees no device: connect one with debugging on, or `adb connect HOST:PORT`")
    if len(listed) > 1:
        raise DeviceError(f"adb sees several devices ({names}): choose one with --serial")
    (device,) = listed
    if device.remedy:
        raise DeviceError(f"device {device.serial} is in the state {device.state!r}: {device.remedy}")
    return device
