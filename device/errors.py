"""The device tool's errors: like all of the project's, one line with cause and remedy, and exit code 2."""

from __future__ import annotations

from mobiedit.runtime.errors import MobiEditError


class DeviceError(MobiEditError):
    """The device refuses, lacks something, or has something that it should not have."""


class TransportError(DeviceError):
    """The connection to the device failed."""


class DeviceTimeout(TransportError):  # noqa: N818 - what it is called everywhere
    """The device did not answer in time."""
