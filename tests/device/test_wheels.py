"""pip itself downloads and builds, from a folder of wheels instead of the network."""

from __future__ import annotations

import json
import platform
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from mobiedit.device import wheels as wheels_module
from mobiedit.device.errors import DeviceError
from mobiedit.device.requirements import Platform
from mobiedit.device.wheels import MANIFEST, fetch_wheels, read_wheels, source_tree
from mobiedit.runtime.errors import RequestError
from tests.device.installed_wheels import repack

HERE = Platform(platform.machine(), (2, 36), (sys.version_info[0], sys.version_info[1]))
SMALL = ("click", "filelock")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip knows; what is needed is two small packages."""
    index = tmp_path / "index"
    index.mkdir()
    for name in SMALL:
        repack(name, index)
    versions = {name: path.name.split("-")[1] for name in SMALL for path in index.glob(f"{name}-*")}
    monkeypatch.setattr(wheels_module, "pinned", lambda *_args, **_more: versions)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "false")  # setuptools is here
    return index


def test_wheels_are_built_downloaded_and_listed(tmp_path: Path, offline: Path) -> None:
    del offline
    fetched = fetch_wheels(tmp_path / "runner", HERE, qnn=False)
    names = [wheel.name for wheel in fetched.files]
    assert [name.split("-")[0] for name in names] == ["click", "filelock", "mobiedit"]
    assert read_wheels(tmp_path / "runner") == fetched
    with zipfile.ZipFile(tmp_path / "runner" / names[-1]) as wheel:
        inside = set(wheel.namelist())
    assert {"mobiedit/runtime/cli.py", "mobiedit/device/runner.py"} <= inside
    assert not any(name.startswith(("tests/", "build/", "scripts/")) for name in inside)
    with pytest.raises(RequestError, match="is there already"):
        fetch_wheels(tmp_path / "runner", HERE, qnn=False)


def test_a_tree_is_not_written_to_when_its_wheel_is_built(tmp_path: Path, offline: Path) -> None:
    del offline
    tree = tmp_path / "tree"
    ignored = shutil.ignore_patterns(".*", "tests", "docs", "scripts", "build", "*.egg-info")
    shutil.copytree(source_tree(), tree, ignore=ignored)
    before = sorted(tree.rglob("*"))
    fetch_wheels(tmp_path / "runner", HERE, qnn=False, source=tree)
    assert sorted(tree.rglob("*")) == before


def test_nothing_is_left_when_pip_finds_no_wheel(tmp_path: Path, offline: Path) -> None:
    built = fetch_wheels(tmp_path / "first", HERE, qnn=False)
    (project,) = [tmp_path / "first" / w.name for w in built.files if w.name.startswith("mobiedit")]
    for path in offline.glob("click-*"):
        path.unlink()
    with pytest.raises(DeviceError, match=r"cannot download the runner's wheels \(.*click.*\): check the network"):
        fetch_wheels(tmp_path / "second", HERE, qnn=False, project_wheel=project)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "index"]


@pytest.mark.parametrize("fault", ["changed", "missing", "link", "no manifest", "schema", "name", "not JSON"])
def test_wheels_are_refused_when_the_folder_is_not_as_it_was_written(fault: str, tmp_path: Path) -> None:
    folder = tmp_path / "runner"
    folder.mkdir()
    wheel, manifest = folder / "a-1-py3-none-any.whl", folder / MANIFEST
    wheel.write_bytes(b"wheel")
    files = (wheels_module.Wheel(wheel.name, wheels_module.sha256_of(wheel), 5),)
    manifest.write_bytes(wheels_module.Wheels(folder, HERE, files).manifest_bytes)
    assert read_wheels(folder).files == files
    data = json.loads(manifest.read_bytes())
    if fault == "changed":
        wheel.write_bytes(b"other")
    elif fault == "missing":
        wheel.unlink()
    elif fault == "link":
        wheel.rename(tmp_path / "elsewhere")
        wheel.symlink_to(tmp_path / "elsewhere")
    elif fault == "no manifest":
        manifest.unlink()
    elif fault == "schema":
        manifest.write_text(json.dumps({**data, "schema": 2}))
    elif fault == "name":
        manifest.write_text(json.dumps({**data, "wheels": [{**data["wheels"][0], "name": "../a"}]}))
    else:
        manifest.write_text("{")
    with pytest.raises(RequestError):
        read_wheels(folder)
