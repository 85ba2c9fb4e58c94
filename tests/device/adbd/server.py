"""adb's server on the host, one for the tests: its own port and its own keys, so that nobody's server is touched."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

from mobiedit.device.adb_program import AdbProgram

from .daemon import Adbd


class AdbServer:
    """A private server.

    Parameters
    ----------
    program
        The adb program.
    home
        A folder for adb's keys.
    """

    def __init__(self, program: str, home: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        self.adb = AdbProgram(program, port)
        # Its log goes below TMPDIR. It is not to look for emulators on this machine.
        environment = {**os.environ, "HOME": str(home), "TMPDIR": str(home), "ADB_LOCAL_TRANSPORT_MAX_PORT": "0"}
        command = [program, "-P", str(port), "start-server"]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)

    def connect(self, device: Adbd) -> str:
        """Make a device known to the server, and return what adb says of it."""
        return self.adb.call(["connect", device.serial]).out.decode()

    def disconnect(self, device: Adbd) -> None:
        """Make the server forget a device."""
        self.adb.call(["disconnect", device.serial])

    def stop(self) -> None:
        """End the server."""
        self.adb.call(["kill-server"])
