from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from mobiedit.device.facts import (
    Libc,
    Python,
    System,
    normal_architecture,
    parse_df,
    parse_glibc,
    parse_meminfo,
    parse_python,
    read_facts,
)
from mobiedit.device.local import LocalTransport
from tests.device.recorded_transport import BOARD, BOARD_FILES, DF, PHONE, PHONE_FILES, RecordedTransport


def test_facts_of_a_board_are_read() -> None:
    facts = read_facts(RecordedTransport(BOARD, BOARD_FILES), "/opt/mobiedit")
    assert facts.system is System.LINUX
    assert not facts.android_kernel
    assert facts.architecture == "aarch64"
    assert facts.soc is not None
    assert facts.soc.name == "QCS9100"
    assert (facts.libc, facts.libc_version) == (Libc.GLIBC, (2, 39))
    assert facts.python == Python("/usr/bin/python3", (3, 12, 3), "aarch64")
    assert facts.free_bytes == 52_000_000 * 1024
    assert facts.available_bytes == 9_000_000 * 1024
    assert facts.hexagon.rpc_libraries == BOARD_FILES[1:3]
    assert facts.hexagon.devices == ("/dev/fastrpc-cdsp",)


def test_facts_of_a_phone_are_androids() -> None:
    facts = read_facts(RecordedTransport(PHONE, PHONE_FILES), "/data/local/tmp/mobiedit")
    assert facts.system is System.ANDROID
    assert facts.libc is Libc.BIONIC
    assert facts.soc is not None
    assert facts.soc.architecture == "v79"
    assert facts.python is None


def test_facts_of_a_glibc_root_on_android_are_both() -> None:
    answers = {
        **PHONE,
        "getconf GNU_LIBC_VERSION": "glibc 2.36\n",
        "python3": "3.11.2 linux-aarch64 /usr/bin/python3\n",
    }
    facts = read_facts(RecordedTransport(answers, PHONE_FILES), "/root/mobiedit")
    assert facts.system is System.LINUX
    assert facts.android_kernel
    assert facts.libc is Libc.GLIBC


def test_facts_of_this_machine_when_local() -> None:
    facts = read_facts(LocalTransport(), "/tmp/no/such/folder", sys.executable)
    name, version = platform.libc_ver()
    assert facts.architecture == normal_architecture(platform.machine())
    assert facts.python is not None
    assert facts.python.version == sys.version_info[:3]
    if name == "glibc":
        assert facts.libc_version == tuple(int(part) for part in version.split(".")[:2])
    assert facts.free_bytes is not None
    assert facts.free_bytes > 0
    if Path("/proc/meminfo").exists():
        assert facts.memory_bytes is not None


def test_facts_are_missing_when_the_device_knows_no_command() -> None:
    facts = read_facts(RecordedTransport({}), "/opt/x")
    assert (facts.libc, facts.python, facts.free_bytes, facts.soc) == (Libc.OTHER, None, None, None)
    assert facts.architecture == ""


def test_musl_is_seen_by_its_loader() -> None:
    facts = read_facts(RecordedTransport({"uname -m": "aarch64"}, ["/lib/ld-musl-aarch64.so.1"]), "/opt/x")
    assert facts.libc is Libc.MUSL


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("glibc 2.31", (2, 31)),
        ("ldd (Debian GLIBC 2.36-9+deb12u10) 2.36\nCopyright", (2, 36)),
        ("ldd (GNU libc) 2.34", (2, 34)),
        ("musl libc (aarch64)\nVersion 1.2.4", None),
        ("", None),
    ],
)
def test_glibc_version_when_stated(text: str, version: tuple[int, int] | None) -> None:
    assert parse_glibc(text) == version


def test_df_when_a_name_is_long() -> None:
    assert parse_df(DF) == 52_000_000 * 1024
    assert parse_df("df: /nope: No such file or directory") is None
    assert parse_df("") is None


def test_python_when_its_path_has_spaces() -> None:
    assert parse_python("3.11.2 linux-aarch64 /opt/my python/bin/python3") == Python(
        "/opt/my python/bin/python3", (3, 11, 2), "aarch64"
    )
    assert parse_python("Python 2.7") is None


def test_meminfo_when_lines_have_no_unit() -> None:
    assert parse_meminfo("MemTotal:  10 kB\nHugePages_Total:  0\n") == {"MemTotal": 10_240}
