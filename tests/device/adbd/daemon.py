"""A small adbd: a device of the tests, on a loopback port, for the real adb client.

It speaks adb's protocol over TCP as far as the project's tool uses it. Its shell and programs are this machine's; its
files lie in a folder of their own, whose absolute path is the path on the device.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

from .faults import Faults
from .link import Link, Stream
from .shell_service import run_shell
from .sync_service import SyncService

_GETPROP = """#!/bin/sh
test -n "$1" || exit 0
while IFS='=' read -r name value; do
    test "$name" = "$1" && { printf '%s\\n' "$value"; exit 0; }
done < "{properties}"
echo
"""


class Adbd:
    """A device.

    Parameters
    ----------
    folder
        An empty folder for its files and programs.
    model
        What it calls itself.
    port
        Its TCP port; 0 takes a free one.

    Attributes
    ----------
    serial
        What adb calls it, once connected.
    root
        The folder of its files.
    programs
        A folder that comes first on its shell's ``$PATH``; programs in it hide those of this machine.
    environment
        The environment of its shell.
    faults
        What goes wrong.
    """

    def __init__(self, folder: Path, model: str = "board", port: int = 0) -> None:
        folder = folder.resolve()
        self.root, self.programs = folder / "files", folder / "programs"
        self.root.mkdir()
        self.programs.mkdir()
        self.faults = Faults()
        self.model = model
        self.environment = {
            "PATH": f"{self.programs}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(self.root),
            "LANG": "C.UTF-8",
        }
        self._properties = folder / "properties"
        self.set_properties({})
        self.add_program("getprop", _GETPROP.replace("{properties}", str(self._properties)))
        self._processes: list[subprocess.Popen[bytes]] = []
        self._links: set[Link] = set()
        self._listener: socket.socket | None = None
        self.port = port
        self.come_back()
        self.serial = f"127.0.0.1:{self.port}"

    def set_properties(self, properties: dict[str, str]) -> None:
        """Set what ``getprop NAME`` prints on the device."""
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))

    def add_program(self, name: str, script: str) -> None:
        """Put a script on the device's ``$PATH``, before this machine's programs."""
        path = self.programs / name
        path.write_text(script)
        path.chmod(0o755)

    def cut(self) -> None:
        """Cut every link now."""
        for link in list(self._links):
            link.close()

    def vanish(self) -> None:
        """Cut every link and take no new one."""
        if self._listener:
            # close() alone would leave the port open while accept() waits.
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.cut()

    def come_back(self) -> None:
        """Take links again, on the same port."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        """End the device, and all that its commands started and left behind."""
        self.vanish()
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve_link, args=(peer,), daemon=True).start()

    def _serve_link(self, peer: socket.socket) -> None:
        about = {"ro.product.name": self.model, "ro.product.model": self.model, "ro.product.device": self.model}
        link = Link(peer, self.faults, about, self._serve)
        self._links.add(link)
        try:
            link.run()
        finally:
            self._links.discard(link)

    def _serve(self, service: str, stream: Stream) -> bool:
        kind, _, argument = service.partition(":")
        if kind == "sync":
            stream.accept()
            SyncService(stream, self.root, self.faults).run()
            return True
        # "shell,v2,TERM=xterm,raw"; a terminal is not offered.
        name, *options = kind.split(",")
        if name == "shell" and "v2" in options and "raw" in options:
            stream.accept()
            self._processes.append(run_shell(stream, argument, self.root, self.environment))
            stream.finished.wait()
            return True
        return False
