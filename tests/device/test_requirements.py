from __future__ import annotations

import pytest

from mobiedit.device import requirements
from mobiedit.device.errors import DeviceError
from mobiedit.device.requirements import Platform, glibc_of, needed, needed_glibc, pinned

BOARD = Platform("aarch64", (2, 36), (3, 11))


def test_tags_when_glibc_is_later_than_a_wheels() -> None:
    assert BOARD.tags[0] == "manylinux_2_36_aarch64"
    assert "manylinux_2_28_aarch64" in BOARD.tags
    assert "manylinux_2_37_aarch64" not in BOARD.tags
    assert BOARD.tags[-1] == "manylinux2014_aarch64"


def test_requirements_are_followed_to_their_ends() -> None:
    found = pinned(BOARD, qnn=False)
    assert {"onnxruntime", "numpy", "tokenizers", "huggingface-hub", "packaging"} <= found.keys()
    assert not {"torch", "onnx", "transformers", "onnxruntime-qnn", "mobiedit", "psutil"} & found.keys()
    assert all(found.values())


def test_requirements_depend_on_the_platform() -> None:
    assert "psutil" in needed(Platform("aarch64", (0, 0), (3, 12), windows=True), qnn=False)
    assert pinned(BOARD, qnn=True).keys() - pinned(BOARD, qnn=False).keys() >= {"onnxruntime-qnn"}


def test_a_package_that_is_not_installed_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    real = requirements.distribution

    def without_numpy(name: str) -> object:
        if name == "numpy":
            raise requirements.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(requirements, "distribution", without_numpy)
    assert needed(BOARD, qnn=False)["numpy"] == ""
    with pytest.raises(DeviceError, match=r"numpy is not: pip install numpy"):
        pinned(BOARD, qnn=False)


@pytest.mark.parametrize(
    ("tag", "version"),
    [
        ("cp311-cp311-manylinux_2_28_aarch64", (2, 28)),
        ("cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64", (2, 27)),
        ("cp38-abi3-manylinux2014_aarch64", (2, 17)),
        ("py3-none-any", None),
        ("cp311-cp311-win_arm64", None),
    ],
)
def test_glibc_of_a_tag(tag: str, version: tuple[int, int] | None) -> None:
    assert glibc_of(tag) == version


def test_needed_glibc_is_that_of_the_installed_wheel() -> None:
    assert needed_glibc("onnxruntime") >= (2, 27)
    assert needed_glibc("no-such-package") == (2, 28)
