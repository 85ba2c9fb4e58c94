"""The table of SoCs, and which one stands for a name."""

from __future__ import annotations

import platform
import sys

import pytest

from mobiedit.runtime import soc
from mobiedit.runtime.configuration import ExecutionConfig, ExecutionProvider
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.qnn_options import QnnOptions
from mobiedit.runtime.soc import SOCS, find_soc


@pytest.fixture
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")


@pytest.fixture
def on_the_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


def test_names_and_numbers_are_one_to_one() -> None:
    assert len({each.name for each in SOCS}) == len({each.model for each in SOCS}) == len(SOCS)
    assert {each.htp for each in SOCS} <= {68, 69, 73, 75, 79, 81}


@pytest.mark.parametrize(
    ("name", "model", "architecture"),
    [("SM8550", 43, "v73"), ("SM8650", 57, "v75"), ("SM8750", 69, "v79"), ("SM8850", 87, "v81")],
)
def test_soc_is_found_when_it_is_named_in_any_case(name: str, model: int, architecture: str) -> None:
    for spelling in (name, name.lower()):
        found = find_soc(spelling)
        assert (found.name, found.model, found.architecture) == (name, model, architecture)


@pytest.mark.parametrize("name", ["", "SM1", "57"])
def test_unknown_soc_is_refused_in_one_line_with_those_that_are_known(name: str) -> None:
    with pytest.raises(RequestError, match=r"\ASoC '.*' is not known: give one of SM8450, [^\n]+\Z"):
        find_soc(name)


@pytest.mark.parametrize("name", [each.name for each in SOCS if each.htp == 68])
def test_soc_is_refused_when_its_npu_has_no_fp16(name: str) -> None:
    with pytest.raises(RequestError, match=rf"{name} \(v68\) has no FP16, which the edit layer needs: use --ep cpu"):
        find_soc(name)


@pytest.mark.usefixtures("on_the_simulator")
def test_simulator_has_a_default_when_no_soc_is_named() -> None:
    assert find_soc(None).name == soc.SIMULATED
    target = ExecutionConfig(provider=ExecutionProvider.QNN).target
    assert target
    assert target.name == soc.SIMULATED


@pytest.mark.usefixtures("on_a_device")
def test_device_has_no_default_when_no_soc_is_named() -> None:
    with pytest.raises(RequestError, match=r"must know the device's SoC: add --soc with one of SM8450, "):
        ExecutionConfig(provider=ExecutionProvider.QNN)
    assert ExecutionConfig(provider=ExecutionProvider.QNN, soc="sm8750").target == find_soc("SM8750")


def test_soc_and_options_are_refused_when_the_cpu_runs_the_graphs() -> None:
    assert ExecutionConfig().target is None
    for config in ({"soc": "SM8650"}, {"qnn": QnnOptions("balanced")}):
        with pytest.raises(RequestError, match=r"\A[^\n]+ mean nothing on the CPU: add --ep qnn[^\n]+\Z"):
            ExecutionConfig(**config)


def test_qnn_options_are_taken_when_they_are_known() -> None:
    assert QnnOptions.of({}) == QnnOptions()
    assert QnnOptions.of({"htp_performance_mode": "balanced"}).htp_performance_mode == "balanced"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"htp_performance_mod": "burst"}, "'htp_performance_mod' is not known: give one of htp_performance_mode, "),
        ({"htp_performance_mode": "fast"}, "htp_performance_mode is not 'fast': give one of default, "),
        ({"soc_model": "57"}, "'soc_model' is not known"),
    ],
)
def test_qnn_option_is_refused_in_one_line_when_the_provider_would_pass_over_it(
    given: dict[str, str], told: str
) -> None:
    with pytest.raises(RequestError) as refused:
        QnnOptions.of(given)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
