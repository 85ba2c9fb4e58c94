"""The messages of adb's transport: 24 bytes of header, then the payload.

After AOSP, packages/modules/adb/protocol.txt: six little-endian words (command, two arguments, the payload's length and
sum, the command's complement).
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

VERSION = 0x01000001
"""The protocol since Android 9: sums are no longer looked at."""

MAX_PAYLOAD = 1 << 20
_HEADER = struct.Struct("<4s5I")


@dataclass(frozen=True)
class Message:
    """One message: CNXN, AUTH, OPEN, OKAY, WRTE or CLSE, its two arguments, and its payload."""

    command: bytes
    first: int
    second: int
    payload: bytes = b""


class LinkClosedError(Exception):
    """The other side is gone, or speaks another protocol."""


def send_message(link: socket.socket, message: Message) -> None:
    """Write one message."""
    (word,) = struct.unpack("<I", message.command)
    total = sum(message.payload) & 0xFFFFFFFF if message.command in (b"CNXN", b"AUTH") else 0
    header = _HEADER.pack(
        message.command, message.first, message.second, len(message.payload), total, word ^ 0xFFFFFFFF
    )
    try:
        link.sendall(header + message.payload)
    except OSError as error:
        raise LinkClosedError from error


def receive_message(link: socket.socket) -> Message:
    """Read one message."""
    command, first, second, length, _, complement = _HEADER.unpack(_exactly(link, _HEADER.size))
    (word,) = struct.unpack("<I", command)
    if complement != word ^ 0xFFFFFFFF or length > MAX_PAYLOAD:
        raise LinkClosedError("not a message of adb")
    return Message(command, first, second, _exactly(link, length))


def _exactly(link: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        try:
            chunk = link.recv(size - len(data))
        except OSError as error:
            raise LinkClosedError from error
        if not chunk:
            raise LinkClosedError
        data += chunk
    return bytes(data)
