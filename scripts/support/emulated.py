"""A Debian root for aarch64 as a device: its own programs run, each under QEMU's user-mode emulation.

Nothing is mounted, no binary format is registered with the kernel, and no root is changed: QEMU looks every file that a
program names up in the root first (``-L``), and elsewhere when it is not there. So programs see the host's /proc, /tmp.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from mobiedit.device.local import LocalTransport
from mobiedit.device.transport import Completed
from mobiedit.runtime.errors import RequestError

QEMU = "qemu-aarch64-static"
_SUITE = "bookworm"
_MIRROR = "http://deb.debian.org/debian"
_PACKAGES = "python3,libstdc++6"
_CPU = "neoverse-n1"
# What Linux says of that CPU. ONNX Runtime looks there for ARM's fields, and dies of SIGSEGV on the host's of x86-64.
_CPU_INFO = """processor\t: 0
BogoMIPS\t: 100.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1

"""
_TOOLS = {QEMU: "qemu-user-static", "debootstrap": "debootstrap", "dpkg-deb": "dpkg"}


def build_root(folder: Path) -> None:
    """Make a Debian root for arm64: packages are downloaded and checked by debootstrap, and unpacked, not configured.

    Raises
    ------
    RequestError
        When a program that is needed is missing, or debootstrap fails.
    """
    for tool, package in _TOOLS.items():
        if shutil.which(tool) is None:
            raise RequestError(f"{tool} is not installed: as root, apt install {package}")
    beside = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    words = ["debootstrap", "--foreign", "--arch=arm64", "--variant=minbase", f"--include={_PACKAGES}"]
    if subprocess.run([*words, _SUITE, str(beside.absolute()), _MIRROR], check=False).returncode:
        raise RequestError("debootstrap failed: it must run as root, with a network; see what it says above")
    for package in sorted((beside / "var/cache/apt/archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(package), str(beside)], check=True)
        package.unlink()
    (beside / "proc").mkdir(exist_ok=True)
    cores = (_CPU_INFO.replace("processor\t: 0", f"processor\t: {core}") for core in range(os.cpu_count() or 1))
    (beside / "proc" / "cpuinfo").write_text("".join(cores), "utf-8")
    beside.replace(folder)


class EmulatedTransport(LocalTransport):
    """A `Transport` to a root's programs, run under emulation below this machine's own folders.

    Parameters
    ----------
    root
        What `build_root` made.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def run(self, words: Sequence[str], *, stdin: bytes = b"", timeout: float = 60.0) -> Completed:
        """Run a program of the root; emulation is slow, hence ten times the time."""
        return super().run(self._emulated(words), stdin=stdin, timeout=10 * timeout)

    def stream(
        self, words: Sequence[str], out: Callable[[bytes], None], err: Callable[[bytes], None], *, timeout: float | None
    ) -> int:
        """Run a program of the root and hand over what it writes as it comes."""
        return super().stream(self._emulated(words), out, err, timeout=timeout)

    def _emulated(self, words: Sequence[str]) -> list[str]:
        """Return the words that run a program of the root, under its own name: Python finds its environment by it."""
        name, path = words[0], Path(words[0])
        if "/" not in name:
            places = [self.root / folder / name for folder in ("usr/bin", "bin", "usr/sbin", "sbin")]
            path = next((place for place in places if place.exists()), places[0])
            if not path.exists():
                return [str(path)]  # the answer is that of a missing program
            name = str(path)
        return [QEMU, "-cpu", _CPU, "-L", str(self.root), "-0", name, str(path.resolve()), *words[1:]]
