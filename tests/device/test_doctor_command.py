from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mobiedit.device import doctor_command
from mobiedit.device.doctor_command import doctor
from tests.device.recorded_transport import BOARD, BOARD_FILES, PHONE, PHONE_FILES, RecordedTransport
from tests.device.test_qnn_wheel import contents, write


def run(*words: str) -> Result:
    return CliRunner().invoke(doctor, list(words), catch_exceptions=False)


@pytest.fixture
def attached(monkeypatch: pytest.MonkeyPatch) -> dict[str, RecordedTransport]:
    """Devices by serial, in place of adb's."""
    devices: dict[str, RecordedTransport] = {}

    monkeypatch.setattr(doctor_command, "connect_by_adb", lambda serial: devices[serial or "only"])
    return devices


def test_this_machine_is_told_of_in_json() -> None:
    done = run("--local", "--json")
    data = json.loads(done.output)
    assert data["facts"]["architecture"] == platform.machine()
    assert done.exit_code == (1 if data["verdict"]["works"] == "nothing" else 0)


def test_a_board_is_told_of_in_words(attached: dict[str, RecordedTransport]) -> None:
    attached["abc"] = RecordedTransport(BOARD, BOARD_FILES)
    done = run("--serial", "abc", "--root", "/opt/mobiedit")
    assert done.exit_code == 0
    assert "QNN will run on the NPU of QCS9100" in done.output


def test_exit_code_is_1_when_nothing_works(attached: dict[str, RecordedTransport]) -> None:
    attached["only"] = RecordedTransport(PHONE, PHONE_FILES)
    done = run()
    assert done.exit_code == 1
    assert "Nothing will work here as it is." in done.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--local", "--serial", "a"], "leave one of them out"),
        (["--wheel", ".", "--local"], "looks at a file"),
        (["--wheel", "."], "is not onnxruntime-qnn"),
        (["--root", "/sdcard/x"], "is not allowed"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words: list[str], message: str, tmp_path: Path) -> None:
    words = [str(tmp_path) if word == "." else word for word in words]
    done = run(*words)
    assert done.exit_code == 2
    assert message in done.output
    assert len(done.output.splitlines()) == 1


def test_wheel_is_looked_into(tmp_path: Path) -> None:
    path = write(tmp_path / "qnn.whl", contents())
    done = run("--wheel", str(path))
    assert done.exit_code == 0
    assert "v79, v81" in done.output
    files = contents()
    del files["onnxruntime_qnn/libQnnHtp.so"]
    done = run("--wheel", str(write(path, files)), "--json")
    assert done.exit_code == 1
    assert any("libQnnHtp.so is missing" in failure for failure in json.loads(done.output)["failures"])
