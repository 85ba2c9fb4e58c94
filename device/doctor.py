"""What will work on a device, in plain words: facts in, a verdict out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from .facts import Facts, Libc, System
from .requirements import QNN, Platform, needed, needed_glibc

OLDEST_PYTHON = (3, 11)
_WHEEL_ARCHITECTURES = ("aarch64", "x86_64")
_RUNNER_BYTES = 600 * 2**20  # the wheels of both providers and what is unpacked from them: 0.15 + 0.35 GB
_SEE_ANDROID = "see docs/android.md for a glibc root, where the CPU provider works"


class Works(StrEnum):
    """The best that a device can do."""

    NPU = "npu"
    CPU = "cpu"
    NOTHING = "nothing"


@dataclass(frozen=True)
class Verdict:
    """What works, and why not more.

    Attributes
    ----------
    works
        QNN on the NPU and the CPU provider; the CPU provider alone; neither.
    summary
        One sentence.
    reasons
        What is missing for more, each a sentence with its remedy.
    wheels
        Names of the packages that the runner needs there, with the versions of this host, empty where it has none.
    platform_tags
        Platform tags of wheels that the device takes, the latest first.
    """

    works: Works
    summary: str
    reasons: tuple[str, ...]
    wheels: dict[str, str]
    platform_tags: tuple[str, ...]


def judge(facts: Facts) -> Verdict:
    """Return what will work on a device."""
    blocking, npu, other, platform = _blocking(facts), _npu(facts), _other(facts), platform_of(facts)
    tags = platform.tags if platform else ()
    if blocking:
        return Verdict(Works.NOTHING, "Nothing will work here as it is.", (*blocking, *other), {}, tags)
    works = Works.CPU if npu else Works.NPU
    if works is Works.NPU:
        assert facts.soc is not None
        summary = (
            f"QNN will run on the NPU of {facts.soc.name} (--ep qnn --soc {facts.soc.name}), "
            "as far as the files tell, and the CPU provider as well."
        )
    else:
        summary = "The CPU provider will work (--ep cpu); the NPU will not."
        if facts.architecture == "x86_64" and facts.system is System.LINUX:
            summary = "The CPU provider will work (--ep cpu); there is no NPU, but QNN's simulator runs (--ep qnn)."
    wheels = needed(platform, qnn=works is Works.NPU) if platform else {}
    return Verdict(works, summary, (*npu, *other), wheels, tags)


def report(facts: Facts, verdict: Verdict) -> dict[str, Any]:
    """Return facts and verdict as JSON values."""
    return {"facts": asdict(facts), "verdict": asdict(verdict)}


def lines(facts: Facts, verdict: Verdict) -> list[str]:
    """Return facts and verdict as lines for a reader."""
    soc = f"{facts.soc.name} (HTP {facts.soc.architecture})" if facts.soc else ""
    libc = " ".join([facts.libc, ".".join(map(str, facts.libc_version or ()))]).strip()
    python = f"{'.'.join(map(str, facts.python.version))} ({facts.python.path})" if facts.python else "none"
    hexagon = (*facts.hexagon.rpc_libraries, *facts.hexagon.devices, *facts.hexagon.skeletons)
    table = {
        "system": facts.system + (" (Android below)" if facts.android_kernel and facts.libc is Libc.GLIBC else ""),
        "architecture": facts.architecture,
        "SoC": soc or f"not known ({', '.join(facts.soc_names) or 'the device states none'})",
        "C library": libc,
        "Python": python,
        "free space": _size(facts.free_bytes),
        "memory": f"{_size(facts.memory_bytes)}, {_size(facts.available_bytes)} available",
        "Hexagon": ", ".join(hexagon) or "nothing found",
        "wheels": ", ".join(f"{name} {version}".strip() for name, version in verdict.wheels.items()),
        "platform": verdict.platform_tags[0] if verdict.platform_tags else "",
    }
    named = [f"{name:<14}{value}" for name, value in table.items() if value]
    return [*named, "", verdict.summary, *(f"- {reason}" for reason in verdict.reasons)]


def _blocking(facts: Facts) -> list[str]:
    """Return why not even the CPU provider works."""
    found = []
    if facts.architecture not in _WHEEL_ARCHITECTURES:
        found.append(
            f"There are no wheels of ONNX Runtime for {facts.architecture or 'this architecture'}: "
            "use a device with a 64-bit ARM (aarch64) or x86-64 system."
        )
    if facts.libc is Libc.BIONIC:
        found.append(
            "This is Android itself (bionic), and neither ONNX Runtime nor onnxruntime-qnn has a wheel for it: "
            f"{_SEE_ANDROID}."
        )
        return found
    if facts.libc is Libc.MUSL:
        found.append(
            "The system uses musl, and ONNX Runtime has no wheel for it: install a system with glibc, as Debian."
        )
    if facts.libc is Libc.OTHER and facts.system is System.LINUX:
        found.append(
            "The C library is neither glibc nor another that is known, and ONNX Runtime's wheels need glibc: "
            "install a system with it, as Debian."
        )
    glibc = needed_glibc("onnxruntime")
    if facts.libc is Libc.GLIBC and facts.libc_version and facts.libc_version < glibc:
        found.append(
            f"glibc {_dotted(facts.libc_version)} is too old, ONNX Runtime's wheel needs {_dotted(glibc)}: "
            "update the system (Debian 12 has 2.36)."
        )
    if facts.python is None:
        found.append("There is no Python: install it (apt install python3), or name one with --python.")
    elif facts.python.version[:2] < OLDEST_PYTHON:
        found.append(
            f"Python {_dotted(facts.python.version)} is too old, {_dotted(OLDEST_PYTHON)} is needed: "
            "install a later one, and name it with --python."
        )
    elif facts.python.architecture not in (facts.architecture, ""):
        found.append(
            f"Python was built for {facts.python.architecture}, the system is {facts.architecture}: "
            f"install a Python for {facts.architecture}; emulated, ONNX Runtime does not reach the NPU and is slow."
        )
    return found


def _npu(facts: Facts) -> list[str]:
    """Return why QNN does not reach the NPU; nothing when all is there."""
    if facts.architecture != "aarch64":
        return [f"Qualcomm makes no NPU for {facts.architecture or 'this architecture'}: use the CPU provider."]
    if facts.android_kernel:
        return [
            "Below a glibc root on Android the vendor's libcdsprpc.so, made for bionic, cannot be loaded: "
            "use the CPU provider."
        ]
    found = []
    glibc = needed_glibc(QNN)
    if facts.libc is Libc.GLIBC and facts.libc_version and facts.libc_version < glibc:
        found.append(
            f"glibc {_dotted(facts.libc_version)} is too old for onnxruntime-qnn, whose wheel needs {_dotted(glibc)}: "
            "update the system, or use the CPU provider."
        )
    if facts.soc is None:
        found.append(
            "The SoC is not one that QNN is known to compile for: if you know it, name it with --soc "
            "(mobiedit ask --help), else use the CPU provider."
        )
    elif not facts.soc.has_fp16:
        found.append(
            f"The NPU of {facts.soc.name} ({facts.soc.architecture}) has no FP16, which the edit layer needs: "
            "use the CPU provider."
        )
    if facts.system is System.WINDOWS:
        return found
    if not facts.hexagon.devices:
        found.append(
            "The kernel shows no /dev/fastrpc-* or /dev/adsprpc-smd, the way to the NPU: install the vendor's system "
            "image, or use the CPU provider."
        )
    if not any(path.endswith("/libcdsprpc.so") for path in facts.hexagon.rpc_libraries):
        found.append(
            "libcdsprpc.so, which QNN calls the NPU with, is not in the system's library folders: install the vendor's "
            "FastRPC package (with libcdsprpc.so.1 alone, link libcdsprpc.so to it), or use the CPU provider."
        )
    return found


def _other(facts: Facts) -> list[str]:
    found = []
    if facts.libc is Libc.GLIBC and facts.libc_version is None:
        found.append("The device does not tell its version of glibc: install libc-bin there, which has getconf.")
    if facts.free_bytes is not None and facts.free_bytes < _RUNNER_BYTES:
        found.append(
            f"Only {_size(facts.free_bytes)} are free, the runner takes up to {_size(_RUNNER_BYTES)}, a bundle more: "
            "free some space, or choose another --root."
        )
    return found


def platform_of(facts: Facts) -> Platform | None:
    """Return what wheels must be made for; None where the device does not tell."""
    if facts.python is None:
        return None
    version = facts.python.version[:2]
    if facts.system is System.WINDOWS:
        return Platform(facts.architecture, (0, 0), version, windows=True)
    if facts.libc is not Libc.GLIBC or facts.libc_version is None:
        return None
    return Platform(facts.architecture, facts.libc_version, version)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _size(count: int | None) -> str:
    return "not known" if count is None else f"{count / 1e9:.1f} GB"
