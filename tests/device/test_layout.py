"""Names below the root."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from mobiedit.device.layout import (
    bundle_name,
    is_of_manifest,
    is_version,
    layout_at,
    new_version,
    version_of_staging,
)
from mobiedit.runtime.errors import RequestError

DIGEST = "0123456789abcdef" * 4
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_version_is_named_by_time_and_manifest() -> None:
    assert new_version(DIGEST, (), NOW) == "20260102T030405Z-01234567"
    assert is_of_manifest("20260102T030405Z-01234567", DIGEST)
    assert not is_of_manifest("20260102T030405Z-f1234567", DIGEST)


def test_version_sorts_behind_the_others_when_a_clock_was_ahead() -> None:
    ahead = "20991231T235959Z-ffffffff"
    assert new_version(DIGEST, ("20250102T030405Z-ffffffff", ahead), NOW) == "21000101T000000Z-01234567"


@pytest.mark.parametrize(
    "name", ["", "current", "20260102T030405Z", "20261302T030405Z-01234567", "20260102T030405Z-0123456G", "../x"]
)
def test_other_names_are_no_versions(name: str) -> None:
    assert not is_version(name)
    assert version_of_staging(f".staging-{name}") is None


def test_staging_folder_tells_its_version() -> None:
    layout, version = layout_at("/tmp/x"), "20260102T030405Z-01234567"
    assert layout.staging(version) == f"/tmp/x/.staging-{version}"
    assert version_of_staging(f".staging-{version}") == version


@pytest.mark.parametrize(
    ("bundle", "name"), [("a.bundle", "a.bundle"), ("x/a.bundle/", "a.bundle"), ("/x/../a b", "a b"), ("x/a;b", "a;b")]
)
def test_bundle_is_called_as_its_folder(bundle: str, name: str) -> None:
    assert bundle_name(Path(bundle)) == name


def test_bundle_is_called_as_the_folder_when_named_by_dots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    assert bundle_name(Path()) == "inner"
    assert bundle_name(Path("..")) == tmp_path.name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\nb", "a\0b", "a\x7fb", "ä" * 128])
def test_bundle_name_is_refused_when_it_could_lead_elsewhere(name: str) -> None:
    with pytest.raises(RequestError):
        layout_at("/tmp/x").bundle(name)
