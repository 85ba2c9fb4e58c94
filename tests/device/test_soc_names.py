import pytest

from mobiedit.device.soc_names import identify
from mobiedit.runtime.soc import SOCS


@pytest.mark.parametrize(
    ("names", "soc"),
    [
        (["SM8650"], "SM8650"),
        (["557"], "SM8650"),
        (["somebody,phone", "qcom,sm8550"], "SM8550"),
        (["lenovo,thinkpad-t14s", "qcom,x1e78100", "qcom,x1e80100"], "SC8380XP"),
        (["555"], "SC8380XP"),
        (["Tensor G4", "zumapro"], None),
        ([], None),
    ],
)
def test_soc_when_named(names: list[str], soc: str | None) -> None:
    found = identify(names)
    assert (found.name if found else None) == soc


def test_every_soc_is_found_by_its_own_name_in_any_case() -> None:
    for soc in SOCS:
        assert identify([soc.name.lower()]) == soc
