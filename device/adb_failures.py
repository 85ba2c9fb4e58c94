"""What adb says when it fails: whether the device refused or the connection did, and whether a command may have run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from .errors import DeviceError, TransportError
from .transport import Completed


class NotReached(TransportError):  # noqa: N818 - a state of the connection
    """The device was not reached: what was asked for has not begun, and may be asked for again."""


class FailureKind(Enum):
    """What a failure means for another attempt."""

    REFUSED = "the device or the host's disk refused a file: another attempt would end the same way"
    NOT_STARTED = "the device was not reached: whatever was asked for has not begun"
    UNKNOWN = "the connection broke, nobody knows how far it came"


CHECK_CONNECTION = "check the device and its cable or network with `adb devices`, and try again"
"""What helps when the connection fails."""

# What the device's file service, or the host's system, says of a file, in the words of strerror(3).
_REFUSALS = {
    "no space left on device": "free some space, and try again",
    "disk quota exceeded": "free some space, and try again",
    "file too large": "choose a folder on another file system",
    "read-only file system": "choose a folder that can be written",
    "permission denied": "choose a folder that adb's user may use",
    "operation not permitted": "choose a folder that adb's user may use",
    "no such file or directory": "check that the folder is there",
    "does not exist": "check the path",
    "is a directory": "remove the folder that is in its place",
    "not a directory": "check the path",
    "file name too long": "take a shorter path",
    "path too long": "take a shorter path",
    "too many levels of symbolic links": "check the path",
}
# adb says these before it asks the device for anything.
_NOT_STARTED = re.compile(
    r"device '.*' not found|no devices/emulators found|device offline|device still \w+|device unauthorized"
    r"|device not found|insufficient permissions for device|cannot connect to daemon|more than one device",
)
_ERRORS = {
    FailureKind.REFUSED: DeviceError,
    FailureKind.NOT_STARTED: NotReached,
    FailureKind.UNKNOWN: TransportError,
}


@dataclass(frozen=True)
class AdbFailure:
    """A call of adb that failed: what that means, why in adb's words, and what helps."""

    kind: FailureKind
    reason: str
    remedy: str

    @classmethod
    def of(cls, completed: Completed) -> AdbFailure:
        """Return what an unsuccessful call means, from what adb printed."""
        printed = (completed.out + b"\n" + completed.err).decode("utf-8", "replace")
        lines = [line.strip() for line in printed.splitlines() if line.strip()]
        # adb's last line of this form says why; lines without it may be advice behind it.
        told = [line for line in lines if line.startswith(("error:", "adb:"))] or lines or [""]
        message = re.sub(r"^(adb: )?(error: )?", "", told[-1])
        reason = message.rpartition("': ")[2]  # without paths, which may hold any words
        if _NOT_STARTED.search(reason):
            return cls(FailureKind.NOT_STARTED, reason, CHECK_CONNECTION)
        for refusal, remedy in _REFUSALS.items():
            if refusal in reason.lower():
                return cls(FailureKind.REFUSED, reason, remedy)
        return cls(FailureKind.UNKNOWN, reason or "the connection broke", CHECK_CONNECTION)

    def error(self, what: str) -> DeviceError:
        """Return the error to raise: `DeviceError` for a refusal, `NotReached`, or else `TransportError`.

        Parameters
        ----------
        what
            What was attempted and failed: ``"cannot push weights.bin"``.
        """
        return _ERRORS[self.kind](f"{what} ({self.reason[:300]}): {self.remedy}")
