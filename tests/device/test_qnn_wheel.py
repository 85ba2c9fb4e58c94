"""A wheel in miniature: its files have the headers of the real ones, and the record has their hashes."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

import pytest

from mobiedit.device.qnn_wheel import inspect
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.soc import SOCS

INFO = "onnxruntime_qnn-2.7.0.dist-info"
VERSIONS = sorted({soc.htp for soc in SOCS})


def elf(machine: int) -> bytes:
    return b"\x7fELF\2\1\1".ljust(18, b"\0") + machine.to_bytes(2, "little") + b"rest"


def contents() -> dict[str, bytes]:
    names = ["onnxruntime_providers_qnn", "QnnHtp", "QnnHtpPrepare", "QnnSystem"]
    files = {f"onnxruntime_qnn/lib{name}.so": elf(183) for name in names}
    for version in VERSIONS:
        files[f"onnxruntime_qnn/libQnnHtpV{version}Stub.so"] = elf(183)
        files[f"onnxruntime_qnn/libQnnHtpV{version}Skel.so"] = elf(164)
    files["onnxruntime_qnn/__init__.py"] = b""
    files[f"{INFO}/WHEEL"] = b"Wheel-Version: 1.0\nTag: cp311-cp311-manylinux_2_34_aarch64\n"
    return files


def write(path: Path, files: dict[str, bytes], recorded: dict[str, bytes] | None = None) -> Path:
    rows = []
    for name, data in (recorded or files).items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        rows.append(f"{name},sha256={digest},{len(data)}")
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in {**files, f"{INFO}/RECORD": "\n".join([*rows, f"{INFO}/RECORD,,"]).encode()}.items():
            wheel.writestr(name, data)
    return path


def test_a_whole_wheel_has_provider_and_skeletons(tmp_path: Path) -> None:
    path = write(tmp_path / "qnn.whl", contents())
    found = inspect(path)
    assert found.failures == ()
    assert (found.version, found.platform) == ("2.7.0", "manylinux_2_34_aarch64")
    assert found.skeletons == tuple(VERSIONS)
    assert "libonnxruntime_providers_qnn.so" in found.libraries
    with zipfile.ZipFile(path) as wheel:
        wheel.extractall(tmp_path / "site-packages")
    assert inspect(tmp_path / "site-packages") == found


def test_what_is_missing_damaged_or_of_another_processor_is_named(tmp_path: Path) -> None:
    files = contents()
    del files["onnxruntime_qnn/libQnnHtpV75Stub.so"]
    del files["onnxruntime_qnn/libQnnHtpV81Skel.so"]
    files["onnxruntime_qnn/libQnnHtp.so"] = elf(62)
    files["onnxruntime_qnn/libQnnHtpV79Skel.so"] = elf(164) + b"changed"
    files["onnxruntime_qnn/libQnnSystem.so"] = b"no library"
    failures = inspect(write(tmp_path / "qnn.whl", files, contents())).failures
    for expected in (
        "libQnnHtpV75Stub.so is missing",
        "libQnnHtpV81Skel.so is missing",
        "libQnnHtp.so is for another processor (ELF machine 62)",
        "libQnnHtpV79Skel.so is damaged",
        "libQnnSystem.so is for another processor (ELF machine None)",
    ):
        assert any(expected in failure for failure in failures), expected


def test_what_is_no_wheel_of_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.whl").write_text("text")
    with pytest.raises(RequestError, match="not a wheel that can be read"):
        inspect(tmp_path / "text.whl")
    with pytest.raises(RequestError, match="is not onnxruntime-qnn"):
        inspect(tmp_path)
