"""The length of a difference by the graphs' precision."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobiedit.runtime import open_bundle
from mobiedit.runtime.configuration import EditConfig, GaussNewtonConfig
from mobiedit.runtime.perturbation import LEAST, for_precision


@pytest.mark.parametrize(
    ("precision", "mu", "wanted"), [("w8", 0.05, 0.3), ("w8", 0.5, 0.5), ("w8a16", 0.05, 0.1), ("fp32", 0.05, 0.05)]
)
def test_length_is_what_the_rounding_allows_when_shorter(precision: str, mu: float, wanted: float) -> None:
    config = GaussNewtonConfig(mu=mu, columns=7)
    assert for_precision(config, precision) == GaussNewtonConfig(mu=wanted, columns=7)


def test_search_has_the_length_of_its_bundle_when_made(fp32_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(fp32_bundle, verify=False)
    assert bundle.search_for(EditConfig()).keywords["config"].mu == GaussNewtonConfig().mu  # type: ignore[attr-defined]
    monkeypatch.setitem(LEAST, "fp32", 0.7)
    assert bundle.search_for(EditConfig()).keywords["config"].mu == 0.7  # type: ignore[attr-defined]
