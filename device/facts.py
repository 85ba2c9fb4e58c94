"""What a device is: read over a connection, one small command for each fact. Nothing here judges; `doctor.py` does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

from mobiedit.runtime.soc import Soc

from .soc_names import identify
from .transport import Transport

ARCHITECTURES = {"arm64": "aarch64", "amd64": "x86_64"}
"""Other names of what Linux calls aarch64 and x86_64."""

_RPC_LIBRARIES = ("/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/vendor/lib64", "/system/lib64")
_SKELETONS = ("/usr/lib/dsp/cdsp", "/usr/lib/rfsa/adsp", "/usr/share/qcom", "/dsp/cdsp", "/vendor/lib/rfsa/adsp")
_SHELL_LIST = 'for f in "$@"; do for g in $f; do [ -e "$g" ] && printf "%s\\n" "$g"; done; done; true'
_PYTHON_SCRIPT = (
    "import sys, sysconfig; print('%d.%d.%d' % sys.version_info[:3], sysconfig.get_platform(), sys.executable)"
)


class System(StrEnum):
    """The operating system."""

    LINUX = "linux"
    ANDROID = "android"
    WINDOWS = "windows"
    OTHER = "other"


class Libc(StrEnum):
    """The C library that programs of the device are linked with."""

    GLIBC = "glibc"
    MUSL = "musl"
    BIONIC = "bionic"
    OTHER = "other"


@dataclass(frozen=True)
class Python:
    """A Python interpreter of the device.

    Attributes
    ----------
    path
        Where it is.
    version
        Major, minor, micro.
    architecture
        What it was built for: an x86-64 Python runs on Windows for ARM too, and takes other wheels.
    """

    path: str
    version: tuple[int, int, int]
    architecture: str


@dataclass(frozen=True)
class Hexagon:
    """What a process needs to reach the NPU.

    Attributes
    ----------
    rpc_libraries
        ``libcdsprpc.so*``: calls from the CPU to the NPU.
    devices
        The kernel's device nodes.
    skeletons
        ``libQnnHtpV*Skel.so`` that the system has; the wheel brings its own.
    """

    rpc_libraries: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    skeletons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What a device is; None where it does not tell.

    Attributes
    ----------
    system, android_kernel
        The operating system; whether its kernel and folders are Android's, also below a glibc root there.
    architecture
        Of the CPU, as Linux names it: aarch64.
    soc, soc_names
        The SoC, where it is one that QNN is known to compile for, and the names that the device gives.
    libc, libc_version
        The C library; glibc's version as (major, minor).
    python
        The interpreter that the runner would use.
    free_bytes, memory_bytes, available_bytes
        Free space at the root; memory, and what of it is available.
    """

    system: System
    android_kernel: bool
    architecture: str
    soc: Soc | None
    soc_names: tuple[str, ...]
    libc: Libc
    libc_version: tuple[int, int] | None
    python: Python | None
    free_bytes: int | None
    memory_bytes: int | None
    available_bytes: int | None
    hexagon: Hexagon


def read_facts(transport: Transport, root: str, python: str = "python3") -> Facts:
    """Read what a Linux or Android device is.

    Parameters
    ----------
    root
        The folder that the runner and bundles would lie in; it need not exist yet.
    python
        The interpreter to look at: a name or a path.

    Raises
    ------
    TransportError
        When the connection fails. A command that the device lacks is a fact, not an error.
    """
    android = "/system/build.prop" in existing(transport, ["/system/build.prop"])
    libc, version = _libc(transport, android)
    names = tuple(_soc_names(transport))
    memory = parse_meminfo(_text(transport, ["cat", "/proc/meminfo"]))
    return Facts(
        system=System.ANDROID if libc is Libc.BIONIC else _system(_text(transport, ["uname", "-s"])),
        android_kernel=android,
        architecture=normal_architecture(_text(transport, ["uname", "-m"])),
        soc=identify(names),
        soc_names=names,
        libc=libc,
        libc_version=version,
        python=_python(transport, python),
        free_bytes=_free_bytes(transport, root),
        memory_bytes=memory.get("MemTotal"),
        available_bytes=memory.get("MemAvailable"),
        hexagon=Hexagon(
            existing(transport, [f"{folder}/libcdsprpc.so*" for folder in _RPC_LIBRARIES]),
            existing(transport, ["/dev/fastrpc-*", "/dev/adsprpc-smd*"]),
            existing(transport, [f"{folder}/libQnnHtpV*Skel.so" for folder in _SKELETONS]),
        ),
    )


def existing(transport: Transport, patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the paths on the device that match any of the patterns, which have no spaces."""
    return tuple(_text(transport, ["sh", "-c", _SHELL_LIST, "sh", *patterns]).splitlines())


def normal_architecture(name: str) -> str:
    """Return an architecture as Linux names it."""
    lowered = name.lower()
    return ARCHITECTURES.get(lowered, lowered)


def parse_meminfo(text: str) -> dict[str, int]:
    """Return the fields of /proc/meminfo in bytes."""
    return {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def parse_df(text: str) -> int | None:
    """Return the free bytes that ``df -Pk`` states; None where it states none."""
    lines = text.splitlines()
    found = re.search(r"\s\d+\s+\d+\s+(\d+)\s+\d+%\s", lines[-1]) if len(lines) > 1 else None
    return int(found[1]) * 1024 if found else None


def parse_glibc(text: str) -> tuple[int, int] | None:
    """Return glibc's version from what ``getconf GNU_LIBC_VERSION`` or ``ldd --version`` prints first."""
    first = text.splitlines()[0] if text else ""
    known = "glibc" in first.lower() or "gnu libc" in first.lower()
    found = re.search(r"(\d+)\.(\d+)\S*$", first)
    return (int(found[1]), int(found[2])) if known and found else None


def parse_python(text: str) -> Python | None:
    """Return the interpreter from its version, platform and path on one line."""
    found = re.fullmatch(r"(\d+)\.(\d+)\.(\d+) (\S+) (.+)", text)
    if found is None:
        return None
    version = (int(found[1]), int(found[2]), int(found[3]))
    return Python(found[5], version, normal_architecture(found[4].rpartition("-")[2]))


def _text(transport: Transport, words: Sequence[str]) -> str:
    """Return what a command prints, without the line's end; nothing when it fails or is missing."""
    done = transport.run(words)
    return done.out.decode("utf-8", "replace").strip() if done.code == 0 else ""


def _system(name: str) -> System:
    return System.LINUX if name == "Linux" else System.OTHER


def _libc(transport: Transport, android: bool) -> tuple[Libc, tuple[int, int] | None]:
    for words in (["getconf", "GNU_LIBC_VERSION"], ["ldd", "--version"]):
        if version := parse_glibc(_text(transport, words)):
            return Libc.GLIBC, version
    if existing(transport, ["/lib/ld-musl-*", "/usr/lib/ld-musl-*"]):
        return Libc.MUSL, None
    # A glibc root without those programs still has the loader that its programs name.
    if existing(transport, ["/lib/ld-linux-aarch64.so.1", "/lib64/ld-linux-x86-64.so.2"]):
        return Libc.GLIBC, None
    return (Libc.BIONIC if android else Libc.OTHER), None


def _soc_names(transport: Transport) -> list[str]:
    """Return what the device calls its SoC: Android's property, the kernel's socinfo, the device tree."""
    texts = [_text(transport, ["getprop", "ro.soc.model"])]
    texts += [_text(transport, ["cat", f"/sys/devices/soc0/{name}"]) for name in ("machine", "soc_id")]
    texts += _text(transport, ["cat", "/proc/device-tree/compatible"]).split("\0")
    return list(dict.fromkeys(text.strip() for text in texts if text.strip()))


def _python(transport: Transport, name: str) -> Python | None:
    return parse_python(_text(transport, [name, "-I", "-c", _PYTHON_SCRIPT]))


def _free_bytes(transport: Transport, root: str) -> int | None:
    """Return the free space at the first folder above the root that exists."""
    for folder in (PurePosixPath(root), *PurePosixPath(root).parents):
        if (free := parse_df(_text(transport, ["df", "-Pk", str(folder)]))) is not None:
            return free
    return None
