"""Devices of the tests: small daemons on loopback that the real adb client talks to."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mobiedit.device import wheels as wheels_module
from mobiedit.device.adb import AdbTransport, Retries
from mobiedit.device.requirements import Platform, pinned
from mobiedit.device.wheels import Wheels
from tests.device.adbd.daemon import Adbd
from tests.device.adbd.server import AdbServer
from tests.device.installed_wheels import repack, wheels_of

QUICK = Retries(attempts=3, pause=0.05)
"""Retries without long pauses: a device of the tests is back at once or never."""


@dataclass(frozen=True)
class AdbDevice:
    """A device that is connected.

    Attributes
    ----------
    daemon
        The device's side: its folder (`root`, the same path on the device), programs, properties and faults.
    transport
        The host's side.
    server
        adb's server between them.
    """

    daemon: Adbd
    transport: AdbTransport
    server: AdbServer

    @property
    def root(self) -> Path:
        """The folder of the device's files; its path is the same on the device and here."""
        return self.daemon.root


@pytest.fixture(scope="session")
def adb_program() -> str:
    """The real adb client; ``.ci/run`` installs it where it may, and without it the tests that need it are skipped."""
    found = shutil.which("adb")
    if found is None:
        pytest.skip("adb is not installed: apt-get install adb")
    return found


@pytest.fixture(scope="session")
def adb_server(adb_program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdbServer]:
    """A server of adb of the tests' own."""
    server = AdbServer(adb_program, tmp_path_factory.mktemp("adb"))
    yield server
    server.stop()


@pytest.fixture
def make_device(adb_server: AdbServer) -> Iterator[Callable[..., AdbDevice]]:
    """Return a function that starts a device and connects it, unless told not to."""
    # Below /tmp, wherever pytest has its own folders: a root on a device must lie in an allowed place.
    folder = Path(tempfile.mkdtemp(prefix="mobiedit-device-", dir="/tmp"))
    started: list[Adbd] = []

    def make(model: str = "board", *, connect: bool = True) -> AdbDevice:
        inside = folder / str(len(started))
        inside.mkdir()
        daemon = Adbd(inside, model)
        started.append(daemon)
        if connect:
            told = adb_server.connect(daemon)
            assert "connected to" in told, told
        return AdbDevice(daemon, AdbTransport(adb_server.adb, daemon.serial, QUICK), adb_server)

    yield make
    for daemon in started:
        adb_server.disconnect(daemon)
        daemon.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def adb_device(make_device: Callable[..., AdbDevice]) -> AdbDevice:
    """A connected device."""
    return make_device()


@pytest.fixture(scope="session")
def runner_wheels(tmp_path_factory: pytest.TempPathFactory) -> Wheels:
    """Everything that the runner is: the packages that are installed here, and the project's wheel of this tree."""
    folder = tmp_path_factory.mktemp("wheels")
    for name in pinned(Platform(platform.machine(), (2, 36), sys.version_info[:2]), qnn=False):
        repack(name, folder)
    environment = {**os.environ, "PIP_NO_BUILD_ISOLATION": "false", "PIP_NO_INDEX": "1"}
    tree = wheels_module.source_tree()
    copy = tmp_path_factory.mktemp("tree") / "mobiedit"
    shutil.copytree(tree, copy, ignore=shutil.ignore_patterns(".*", "build", "tests", "docs", "*.egg-info"))
    words = [sys.executable, "-m", "pip", "-q", "wheel", "--no-deps", "--wheel-dir", str(folder), str(copy)]
    subprocess.run(words, env=environment, check=True)
    return wheels_of(folder)
