"""A device that answers what was recorded of one; what it was not asked then is a missing program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from mobiedit.device.transport import Completed

MISSING = Completed(127, b"", b"not found\n")


class RecordedTransport:
    """Answers by the words of a command, joined by spaces; ``files`` are what its file system is seen to have."""

    def __init__(self, answers: Mapping[str, str], files: Sequence[str] = ()) -> None:
        self.answers, self.files = answers, files

    def run(self, words: Sequence[str], *, stdin: bytes = b"", timeout: float = 60.0) -> Completed:
        del stdin, timeout
        if words[:2] == ["sh", "-c"]:  # the listing of patterns, which follow the name of the shell
            found = [file for file in self.files if any(fnmatchcase(file, pattern) for pattern in words[4:])]
            return Completed(0, "".join(f"{file}\n" for file in found).encode(), b"")
        answer = self.answers.get(" ".join(words)) or self.answers.get(words[0])
        return MISSING if answer is None else Completed(0, answer.encode(), b"")

    def stream(
        self, words: Sequence[str], out: Callable[[bytes], None], err: Callable[[bytes], None], *, timeout: float | None
    ) -> int:
        raise NotImplementedError

    def push(self, source: Path, target: str, *, timeout: float = 3600.0) -> None:
        raise NotImplementedError

    def pull(self, source: str, target: Path, *, timeout: float = 3600.0) -> None:
        raise NotImplementedError


DF = (
    "Filesystem     1024-blocks    Used Available Capacity Mounted on\n"
    "/dev/root         61000000 9000000  52000000      15% /\n"
)
MEMINFO = "MemTotal:       16000000 kB\nMemFree:          200000 kB\nMemAvailable:    9000000 kB\n"

BOARD = {
    "uname -s": "Linux\n",
    "uname -m": "aarch64\n",
    "getconf GNU_LIBC_VERSION": "glibc 2.39\n",
    "cat /sys/devices/soc0/machine": "QCS9100\n",
    "cat /sys/devices/soc0/soc_id": "667\n",
    "cat /proc/device-tree/compatible": "qcom,qcs9100-ride\0qcom,qcs9100\0qcom,sa8775p\0",
    "cat /proc/meminfo": MEMINFO,
    "df": DF,
    "python3": "3.12.3 linux-aarch64 /usr/bin/python3\n",
}
"""A Linux board with everything that the NPU needs."""

BOARD_FILES = (
    "/lib/ld-linux-aarch64.so.1",
    "/usr/lib/aarch64-linux-gnu/libcdsprpc.so",
    "/usr/lib/aarch64-linux-gnu/libcdsprpc.so.1",
    "/dev/fastrpc-cdsp",
)

PHONE = {
    "uname -s": "Linux\n",
    "uname -m": "aarch64\n",
    "getprop ro.soc.model": "SM8750\n",
    "cat /proc/meminfo": MEMINFO,
    "df": "Filesystem     1024-blocks     Used Available Capacity Mounted on\n"
    "/dev/block/dm-51  235467776 98765432 136702344      42% /data\n",
}
"""An Android phone, as the shell user sees it."""

PHONE_FILES = ("/system/build.prop", "/vendor/lib64/libcdsprpc.so", "/dev/adsprpc-smd", "/dev/adsprpc-smd-secure")
