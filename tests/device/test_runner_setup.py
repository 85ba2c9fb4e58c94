from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mobiedit.device import runner_setup
from mobiedit.device.errors import DeviceError
from mobiedit.device.requirements import Platform
from mobiedit.device.runner_setup import set_up_runner
from mobiedit.runtime.errors import RequestError
from tests.device.recorded_transport import BOARD, BOARD_FILES, PHONE, PHONE_FILES, RecordedTransport

ROOT = "/opt/mobiedit"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Platform, bool]]:
    """What would have been downloaded; the push is left out."""
    asked: list[tuple[Platform, bool]] = []

    def fetch(out: Path, platform: Platform, *, qnn: bool, project_wheel: Path | None) -> str:
        del out, project_wheel
        asked.append((platform, qnn))
        return "wheels"

    def push(*given: Any) -> Any:
        return given[2]

    monkeypatch.setattr(runner_setup, "fetch_wheels", fetch)
    monkeypatch.setattr(runner_setup, "push_runner", push)
    return asked


def test_qnn_is_among_the_wheels_when_the_npu_works(fetched: list[tuple[Platform, bool]]) -> None:
    assert set_up_runner(RecordedTransport(BOARD, BOARD_FILES), ROOT) == "wheels"
    set_up_runner(RecordedTransport(BOARD, BOARD_FILES[:-1]), ROOT)
    platform = Platform("aarch64", (2, 39), (3, 12))
    assert fetched == [(platform, True), (platform, False)]


def test_nothing_is_fetched_when_nothing_works(fetched: list[tuple[Platform, bool]]) -> None:
    with pytest.raises(DeviceError, match="does not work on this device: This is Android itself"):
        set_up_runner(RecordedTransport(PHONE, PHONE_FILES), "/data/local/tmp/mobiedit")
    silent = {words: answer for words, answer in BOARD.items() if not words.startswith("getconf")}
    with pytest.raises(DeviceError, match="does not tell its version of glibc: install"):
        set_up_runner(RecordedTransport(silent, BOARD_FILES), ROOT)
    with pytest.raises(RequestError, match="is not allowed"):
        set_up_runner(RecordedTransport(BOARD, BOARD_FILES), "/etc/mobiedit")
    assert fetched == []
