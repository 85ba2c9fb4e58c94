from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version

import pytest

from mobiedit.device.doctor import Works, judge, lines, report
from mobiedit.device.facts import Facts, Hexagon, Libc, Python, System, read_facts
from mobiedit.runtime.soc import find_soc
from tests.device.recorded_transport import BOARD, BOARD_FILES, PHONE, PHONE_FILES, RecordedTransport


@pytest.fixture
def board() -> Facts:
    return read_facts(RecordedTransport(BOARD, BOARD_FILES), "/opt/mobiedit")


def test_npu_works_when_all_is_there(board: Facts) -> None:
    verdict = judge(board)
    assert verdict.works is Works.NPU
    assert "--soc QCS9100" in verdict.summary
    assert not verdict.reasons
    assert verdict.platform_tags[0] == "manylinux_2_39_aarch64"
    for name in ("onnxruntime", "onnxruntime-qnn", "numpy", "tokenizers", "safetensors", "click", "tqdm"):
        assert verdict.wheels[name] == version(name)


def _with(**changes: object) -> dict[str, object]:
    return changes


CPU_ONLY = {
    "no SoC": (_with(soc=None), "--soc"),
    "no FP16": (_with(soc=replace(find_soc("SM8550"), name="QCS6490", htp=68)), "FP16"),
    "no device node": (_with(hexagon=Hexagon(("/usr/lib/libcdsprpc.so",))), "/dev/fastrpc"),
    "no library": (_with(hexagon=Hexagon((), ("/dev/fastrpc-cdsp",))), "FastRPC"),
    "library under another name": (
        _with(hexagon=Hexagon(("/usr/lib/libcdsprpc.so.1",), ("/dev/fastrpc-cdsp",))),
        "link",
    ),
    "glibc of the provider": (_with(libc_version=(2, 31)), "onnxruntime-qnn"),
    "Android below": (_with(android_kernel=True), "bionic"),
}
NOTHING = {
    "glibc": (_with(libc_version=(2, 23)), "glibc 2.23 is too old"),
    "musl": (_with(libc=Libc.MUSL, libc_version=None), "musl"),
    "another C library": (_with(libc=Libc.OTHER, libc_version=None), "need glibc"),
    "no Python": (_with(python=None), "apt install python3"),
    "old Python": (_with(python=Python("/usr/bin/python3", (3, 9, 2), "aarch64")), "Python 3.9.2 is too old"),
    "emulated Python": (_with(python=Python("python", (3, 12, 1), "x86_64")), "built for x86_64"),
    "32 bits": (_with(architecture="armv7l"), "armv7l"),
}


@pytest.mark.parametrize("case", CPU_ONLY)
def test_cpu_alone_works_when_the_npu_lacks_something(case: str, board: Facts) -> None:
    changes, expected = CPU_ONLY[case]
    verdict = judge(replace(board, **changes))  # type: ignore[arg-type]
    assert verdict.works is Works.CPU
    assert any(expected in reason for reason in verdict.reasons)
    assert "onnxruntime-qnn" not in verdict.wheels
    assert "onnxruntime" in verdict.wheels


@pytest.mark.parametrize("case", NOTHING)
def test_nothing_works_when_the_runner_lacks_something(case: str, board: Facts) -> None:
    changes, expected = NOTHING[case]
    verdict = judge(replace(board, **changes))  # type: ignore[arg-type]
    assert verdict.works is Works.NOTHING
    assert any(expected in reason for reason in verdict.reasons)
    assert all(": " in reason for reason in verdict.reasons)


def test_android_itself_is_sent_to_the_page_about_it() -> None:
    verdict = judge(read_facts(RecordedTransport(PHONE, PHONE_FILES), "/data/local/tmp/mobiedit"))
    assert verdict.works is Works.NOTHING
    assert len(verdict.reasons) == 1
    assert "docs/android.md" in verdict.reasons[0]


def test_little_space_is_told_when_all_else_is_there(board: Facts) -> None:
    verdict = judge(replace(board, free_bytes=10**8))
    assert verdict.works is Works.NPU
    assert any("0.1 GB are free" in reason for reason in verdict.reasons)


def test_an_unknown_glibc_is_told_and_leaves_the_wheels_open(board: Facts) -> None:
    verdict = judge(replace(board, libc_version=None))
    assert any("getconf" in reason for reason in verdict.reasons)
    assert verdict.wheels == {}


def test_windows_on_arm_needs_no_linux_files(board: Facts) -> None:
    windows = replace(
        board, system=System.WINDOWS, libc=Libc.OTHER, libc_version=None, hexagon=Hexagon(), soc=find_soc("SC8380XP")
    )
    verdict = judge(windows)
    assert verdict.works is Works.NPU
    assert verdict.platform_tags == ("win_arm64",)
    assert judge(replace(windows, soc=None)).works is Works.CPU


def test_report_is_json_and_lines_have_everything(board: Facts) -> None:
    verdict = judge(board)
    data = json.loads(json.dumps(report(board, verdict)))
    assert data["verdict"]["works"] == "npu"
    assert data["facts"]["soc"]["htp"] == 73
    text = "\n".join(lines(board, verdict))
    for part in (
        "QCS9100 (HTP v73)",
        "glibc 2.39",
        "3.12.3",
        "53.2 GB",
        "16.4 GB",
        "/dev/fastrpc-cdsp",
        "onnxruntime-qnn",
    ):
        assert part in text
