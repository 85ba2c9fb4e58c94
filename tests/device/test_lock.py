"""The device's lock: one at a time, and a dead owner's place is taken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mobiedit.device.errors import DeviceError, TransportError
from mobiedit.device.layout import Layout, layout_at
from mobiedit.device.lock import device_lock
from tests.device.local_transport import Cut, LocalTransport

DEAD = """
import os, sys
from mobiedit.device.layout import layout_at
from mobiedit.device.lock import device_lock
from tests.device.local_transport import LocalTransport
with device_lock(LocalTransport(), layout_at(sys.argv[1]), "push x"):
    os._exit(1)
"""


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A root that exists."""
    return layout_at(str(tmp_path))


def owner(layout: Layout) -> dict[str, str]:
    found = json.loads((Path(layout.lock) / "owner").read_text("utf-8"))
    assert isinstance(found, dict)
    return found


def test_lock_is_gone_when_the_block_ends(layout: Layout) -> None:
    with device_lock(LocalTransport(), layout, "push x"):
        assert owner(layout)["doing"] == "push x"
    assert not Path(layout.lock).exists()


def test_lock_is_refused_when_it_is_held(layout: Layout) -> None:
    with device_lock(LocalTransport(), layout, "push x"):
        with (
            pytest.raises(DeviceError, match=r"locked: .* does 'push x' since .*--break-lock"),
            device_lock(LocalTransport(), layout, "push y"),
        ):
            pass
        assert owner(layout)["doing"] == "push x"


def test_lock_is_taken_over_when_its_owner_was_cut_off(layout: Layout) -> None:
    with device_lock(Cut(LocalTransport(), 1, done=False), layout, "push x"):
        pass
    assert owner(layout)["doing"] == "push x"
    with device_lock(LocalTransport(), layout, "push y"):
        assert owner(layout)["doing"] == "push y"
    assert not Path(layout.lock).exists()


def test_lock_is_taken_over_when_its_process_died(layout: Layout) -> None:
    root = Path(__file__).parent.parent.parent
    subprocess.run([sys.executable, "-c", DEAD, layout.root], cwd=root, check=False, timeout=60)
    assert owner(layout)["doing"] == "push x"
    with device_lock(LocalTransport(), layout, "push y"):
        assert owner(layout)["doing"] == "push y"


@pytest.mark.parametrize(
    "content", ["", "no json\n\n", "\udcff\0x", '{"host": 1}', '{"host": "h", "token": "../..", "since": "s"}']
)
def test_lock_of_someone_unknown_is_broken_on_demand_alone(layout: Layout, content: str) -> None:
    Path(layout.lock).mkdir()
    (Path(layout.lock) / "owner").write_text(content, "utf-8", "surrogateescape")
    with (
        pytest.raises(DeviceError, match="someone does 'something unknown'"),
        device_lock(LocalTransport(), layout, "push y"),
    ):
        pass
    with device_lock(LocalTransport(), layout, "push y", break_lock=True):
        assert owner(layout)["doing"] == "push y"


def test_lock_of_another_host_is_kept(layout: Layout) -> None:
    Path(layout.lock).mkdir()
    text = json.dumps(
        {"host": "me@there (1)", "token": "0123", "since": "2026-01-02T03:04:05+00:00", "doing": "push z"}
    )
    (Path(layout.lock) / "owner").write_text(text, "utf-8")
    with (
        pytest.raises(DeviceError, match=r"me@there \(1\) does 'push z' since 2026"),
        device_lock(LocalTransport(), layout, "push y"),
    ):
        pass
    assert owner(layout)["doing"] == "push z"


def test_error_of_the_block_is_told_when_the_connection_is_cut_too(layout: Layout) -> None:
    transport = Cut(LocalTransport(), 1, done=False)
    with pytest.raises(TransportError, match="the link was cut"), device_lock(transport, layout, "push x"):
        transport.run(["true"])
