"""Settings: which optimizer takes which, and what is refused in one line."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mobiedit.runtime import EditConfig, LossConfig, ZerothOrderConfig
from mobiedit.runtime.cli import main
from mobiedit.runtime.configuration import GaussNewtonConfig, Optimizer, edit_config
from mobiedit.runtime.errors import RequestError

OWN = {Optimizer.GN: GaussNewtonConfig, Optimizer.ZO: ZerothOrderConfig}
NAMES = {optimizer: {field.name for field in fields(own)} for optimizer, own in OWN.items()}
REQUEST = ["--prompt", "The capital of {} is", "--subject", "France", "--target", "Rome"]


def test_gauss_newton_is_the_optimizer_when_none_is_named() -> None:
    assert EditConfig().optimizer is Optimizer.GN
    assert EditConfig().of_optimizer == GaussNewtonConfig()


@pytest.mark.parametrize("optimizer", Optimizer)
def test_settings_are_the_defaults_when_nothing_is_given(optimizer: Optimizer) -> None:
    given_none = edit_config(optimizer, dict.fromkeys((*NAMES[Optimizer.GN], *NAMES[Optimizer.ZO], "unheard-of")))
    assert given_none == edit_config(optimizer, {}) == EditConfig(optimizer)
    assert given_none.of_optimizer == OWN[optimizer]()
    assert given_none.of_optimizer.steps == OWN[optimizer]().steps


@pytest.mark.parametrize("optimizer", Optimizer)
def test_own_settings_are_taken_and_others_stay_when_some_are_given(optimizer: Optimizer) -> None:
    chosen = {"steps": 3, "directions": 5, "mu": 0.5, "clamp": 2.0, "stop_probability": 0.6}
    config = edit_config(optimizer, chosen)
    assert asdict(config.of_optimizer) == {**asdict(OWN[optimizer]()), **chosen}
    assert config.of_optimizer.steps == 3
    other = Optimizer.ZO if optimizer is Optimizer.GN else Optimizer.GN
    untouched = config.zeroth_order if other is Optimizer.ZO else config.gauss_newton
    assert untouched == OWN[other]()


@pytest.mark.parametrize("optimizer", Optimizer)
@given(name=st.sampled_from(sorted(NAMES[Optimizer.GN] | NAMES[Optimizer.ZO])) | st.text(min_size=1), value=st.just(1))
def test_setting_is_refused_by_its_option_when_the_optimizer_has_none(
    optimizer: Optimizer, name: str, value: int
) -> None:
    if name in NAMES[optimizer]:
        return
    with pytest.raises(RequestError) as refused:
        edit_config(optimizer, {name: value})
    option = name.replace("_", "-")
    assert str(refused.value).startswith(f"--{option} means nothing to the optimizer {optimizer}: ")


@pytest.mark.parametrize(
    "changes",
    [
        *({name: value} for name in ("steps", "forwards", "directions", "top_tokens") for value in (0, -1)),
        {"refinements": -1},
        {"subspace_directions": -1},
        *({name: value} for name in ("mu", "damping", "clamp") for value in (0.0, -0.1, math.nan, math.inf)),
        *({"stop_probability": value} for value in (0.0, 1.0, math.nan)),
    ],
    ids=lambda changes: "-".join(f"{name}={value}" for name, value in changes.items()),
)
def test_gauss_newton_is_refused_when_it_cannot_search(changes: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=r"\A[^\n]+: give [^\n]+\Z"):
        GaussNewtonConfig(**changes)
    with pytest.raises(RequestError):
        edit_config(Optimizer.GN, changes)


@pytest.mark.parametrize("changes", [{"refinements": 0, "subspace_directions": 0}, {"steps": 1, "forwards": 1}])
def test_gauss_newton_is_accepted_when_values_are_at_the_edge(changes: dict[str, Any]) -> None:
    assert asdict(edit_config(Optimizer.GN, changes).gauss_newton) == {**asdict(GaussNewtonConfig()), **changes}


@pytest.mark.parametrize("changes", [{"kl_factor": -1.0}, {"weight_decay": math.nan}, {"echo_factor": -1.0}])
def test_loss_is_refused_when_it_rewards_what_it_should_punish(changes: dict[str, float]) -> None:
    with pytest.raises(RequestError, match=r"\A[^\n]+: give [^\n]+\Z"):
        LossConfig(**changes)


@pytest.mark.parametrize("option", [["--learning-rate", "0.1"], ["--check-every", "2"]])
def test_option_is_refused_in_one_line_when_gauss_newton_has_no_use_for_it(
    option: list[str], fp32_bundle: Path
) -> None:
    for optimizer in ([], ["--optimizer", "gn"]):
        done = CliRunner().invoke(main, ["edit", str(fp32_bundle), *REQUEST, *optimizer, *option])
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: {option[0]} means nothing to the optimizer gn: ")
        assert done.stderr.count("\n") == 1


def test_optimizer_is_refused_when_there_is_no_such_one(fp32_bundle: Path) -> None:
    done = CliRunner().invoke(main, ["edit", str(fp32_bundle), *REQUEST, "--optimizer", "adam"])
    assert done.exit_code == 2
    assert "--optimizer" in done.stderr
