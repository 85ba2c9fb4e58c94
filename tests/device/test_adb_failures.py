"""What adb's words mean. They are those of adb 29 and 34."""

from __future__ import annotations

import pytest

from mobiedit.device.adb_failures import AdbFailure, FailureKind, NotReached
from mobiedit.device.errors import DeviceError, TransportError
from mobiedit.device.transport import Completed

REFUSED, NOT_STARTED, UNKNOWN = FailureKind


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ("error: device 'emulator-5554' not found", NOT_STARTED),
        ("error: device offline", NOT_STARTED),
        ("error: device still authorizing", NOT_STARTED),
        (
            "error: device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set\nOtherwise check it.",
            NOT_STARTED,
        ),
        ("error: no devices/emulators found", NOT_STARTED),
        ("adb: error: failed to get feature set: device 'x' not found", NOT_STARTED),
        ("adb: error: cannot connect to daemon at tcp:5037: Connection refused", NOT_STARTED),
        ("error: insufficient permissions for device: user in plugdev group; are your udev rules wrong?", NOT_STARTED),
        ("error: closed", UNKNOWN),
        ("error: protocol fault (couldn't read status): Connection reset by peer", UNKNOWN),
        ("adb: error: failed to copy 'a' to 'b': couldn't read from device", UNKNOWN),
        ("adb: error: failed to copy 'a' to 'b': remote write failed: No space left on device", REFUSED),
        ("adb: error: failed to copy 'a' to 'b': remote couldn't create file: Read-only file system", REFUSED),
        ("adb: error: failed to stat remote object '/x': Permission denied", REFUSED),
        ("adb: error: remote object '/x' does not exist", REFUSED),
        ("", UNKNOWN),
    ],
)
def test_a_failure_is_sorted_when_adb_says_why(told: str, kind: FailureKind) -> None:
    failure = AdbFailure.of(Completed(1, b"", told.encode()))
    assert failure.kind is kind
    error = failure.error("cannot push x")
    assert type(error) is {REFUSED: DeviceError, NOT_STARTED: NotReached, UNKNOWN: TransportError}[kind]
    assert str(error).startswith("cannot push x (")
    assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["permission denied", "device offline", "does not exist", "': permission denied"])
def test_a_broken_link_is_no_refusal_when_a_file_has_the_name_of_one(name: str) -> None:
    told = f"adb: error: failed to copy '/host/{name}' to '/tmp/{name}': couldn't read from device"
    assert AdbFailure.of(Completed(1, b"", told.encode())).kind is UNKNOWN
