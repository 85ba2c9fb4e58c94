"""Windows as Python tells of it there; what is asked of the system itself is asked of this one."""

from __future__ import annotations

import platform
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest

from mobiedit.device.doctor import Works, judge
from mobiedit.device.facts import System
from mobiedit.device.windows_facts import windows_facts


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    table = SimpleNamespace(total=16 * 2**30, available=9 * 2**30)
    monkeypatch.setitem(sys.modules, "psutil", SimpleNamespace(virtual_memory=lambda: table))


def windows(monkeypatch: pytest.MonkeyPatch, machine: str, built_for: str, processor: str) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "processor", lambda: processor)
    monkeypatch.setattr(sysconfig, "get_platform", lambda: built_for)


def test_a_laptop_is_told_of_by_python_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    windows(
        monkeypatch, "ARM64", "win-arm64", "ARMv8 (64-bit) Family 8 Model 1 Revision 201, Qualcomm Technologies Inc"
    )
    facts = windows_facts(tmp_path / "not" / "there")
    assert (facts.system, facts.architecture, facts.memory_bytes) == (System.WINDOWS, "aarch64", 16 * 2**30)
    assert facts.free_bytes
    verdict = judge(facts)
    assert verdict.works is Works.CPU
    assert verdict.platform_tags == ("win_arm64",)
    assert any("--soc" in reason for reason in verdict.reasons)


def test_an_emulated_python_is_refused_on_arm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    windows(
        monkeypatch, "AMD64", "win-amd64", "ARMv8 (64-bit) Family 8 Model 1 Revision 201, Qualcomm Technologies Inc"
    )
    verdict = judge(windows_facts(tmp_path))
    assert verdict.works is Works.NOTHING
    assert any("built for x86_64, the system is aarch64" in reason for reason in verdict.reasons)


def test_an_ordinary_pc_has_the_cpu_provider(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    windows(monkeypatch, "AMD64", "win-amd64", "Intel64 Family 6 Model 140 Stepping 1, GenuineIntel")
    assert judge(windows_facts(tmp_path)).works is Works.CPU
