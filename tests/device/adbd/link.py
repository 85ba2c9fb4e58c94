"""One connection of adb's server to a daemon: who it is, and the streams that are opened over it."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from .faults import CutError, Faults
from .wire import MAX_PAYLOAD, VERSION, LinkClosedError, Message, receive_message, send_message

_CHUNK = 64 * 1024


class StreamClosedError(Exception):
    """The other side closed the stream, or the link is gone."""


class Stream:
    """One stream of bytes in both directions; a message is answered before the next one is sent."""

    def __init__(self, link: Link, local: int, remote: int) -> None:
        self.link, self.local, self.remote = link, local, remote
        self.incoming: queue.Queue[bytes | None] = queue.Queue()
        self.ready: queue.Queue[bool] = queue.Queue()
        self.finished = threading.Event()
        self._rest = b""
        self._closed = False

    def accept(self) -> None:
        """Tell the other side that the service is there."""
        self.link.send(Message(b"OKAY", self.local, self.remote))

    def read_some(self) -> bytes:
        """Return what came, at least a byte."""
        while not self._rest:
            if self._closed:
                raise StreamClosedError
            chunk = self.incoming.get()
            if chunk is None:
                self._closed = True
                raise StreamClosedError
            self.link.send(Message(b"OKAY", self.local, self.remote))
            self._rest = chunk
        chunk, self._rest = self._rest, b""
        return chunk

    def read(self, size: int) -> bytes:
        """Return exactly `size` bytes."""
        data, self._rest = self._rest, b""
        while len(data) < size:
            data += self.read_some()
        data, self._rest = data[:size], data[size:]
        return data

    def write(self, data: bytes) -> None:
        """Send bytes, message by message."""
        for start in range(0, len(data), _CHUNK):
            self.link.send(Message(b"WRTE", self.local, self.remote, data[start : start + _CHUNK]))
            if not self.ready.get():
                raise StreamClosedError

    def end(self) -> None:
        """Wake whoever waits: nothing will come any more."""
        self.incoming.put(None)
        self.ready.put(False)


class Link:
    """One connection.

    Parameters
    ----------
    peer
        The socket.
    faults
        What goes wrong.
    properties
        What the device says of itself (``ro.product.name`` and so on).
    serve
        Runs a service, by its name, on a stream; returns False if there is no such service.
    """

    def __init__(
        self, peer: socket.socket, faults: Faults, properties: dict[str, str], serve: Callable[[str, Stream], bool]
    ) -> None:
        self._peer, self._faults, self._properties, self._serve = peer, faults, properties, serve
        self._streams: dict[int, Stream] = {}
        self._sending = threading.Lock()
        self._numbers = iter(range(1, 1 << 31))

    def run(self) -> None:
        """Answer messages until the link ends."""
        try:
            while True:
                message = receive_message(self._peer)
                if self._faults.pass_message():
                    self._answer(message)
        except (LinkClosedError, CutError):
            pass
        finally:
            self.close()

    def send(self, message: Message) -> None:
        """Send one message, unless a fault forbids it."""
        with self._sending:
            try:
                if self._faults.pass_message():
                    send_message(self._peer, message)
            except CutError as error:
                self._hang_up()
                raise StreamClosedError from error
            except LinkClosedError as error:
                raise StreamClosedError from error

    def close(self) -> None:
        """End the link and all of its streams."""
        self._hang_up()
        for stream in list(self._streams.values()):
            stream.end()

    def _hang_up(self) -> None:
        with suppress(OSError):
            self._peer.shutdown(socket.SHUT_RDWR)
        self._peer.close()

    def _answer(self, message: Message) -> None:
        stream = self._streams.get(message.second)
        if message.command in (b"CNXN", b"AUTH"):
            self._greet()
        elif message.command == b"OPEN":
            self._open(message)
        elif message.command == b"WRTE" and stream:
            stream.incoming.put(message.payload)
        elif message.command == b"OKAY" and stream:
            stream.ready.put(True)
        elif message.command == b"CLSE" and stream:
            del self._streams[message.second]
            stream.end()

    def _greet(self) -> None:
        if self._faults.silent:
            return
        if self._faults.unauthorised:
            self._try_send(Message(b"AUTH", 1, 0, b"\7" * 20))
            return
        told = "".join(f"{name}={value};" for name, value in self._properties.items())
        banner = f"{self._faults.banner}::{told}features={','.join(self._faults.features)}"
        self._try_send(Message(b"CNXN", VERSION, MAX_PAYLOAD, banner.encode()))

    def _open(self, message: Message) -> None:
        service = message.payload.rstrip(b"\0").decode("utf-8", "surrogateescape")
        stream = Stream(self, next(self._numbers), message.first)
        self._streams[stream.local] = stream
        threading.Thread(target=self._run_service, args=(service, stream), daemon=True).start()

    def _run_service(self, service: str, stream: Stream) -> None:
        refused = any(service.startswith(start) for start in self._faults.refuse)
        try:
            if refused or not self._serve(service, stream):
                self._streams.pop(stream.local, None)
                self.send(Message(b"CLSE", 0, stream.remote))
                return
        except StreamClosedError:
            pass
        if self._streams.pop(stream.local, None):  # else the other side closed it
            self._try_send(Message(b"CLSE", stream.local, stream.remote))

    def _try_send(self, message: Message) -> None:
        with suppress(StreamClosedError):
            self.send(message)
