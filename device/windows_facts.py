"""What this machine is when it runs Windows: read from Python alone, since nothing there speaks POSIX."""

from __future__ import annotations

import platform
import shutil
import sys
import sysconfig
from pathlib import Path

from .facts import Facts, Hexagon, Libc, Python, System, normal_architecture
from .soc_names import identify


def windows_facts(folder: Path) -> Facts:
    """Return what this machine is.

    Parameters
    ----------
    folder
        Where the runner and bundles would lie; it need not exist yet.
    """
    import psutil  # a dependency on Windows alone

    built_for = normal_architecture(sysconfig.get_platform().rpartition("-")[2])
    # An emulated x86-64 Python is told that the machine is x86-64; the processor's own name gives it away.
    described = platform.processor()
    architecture = "aarch64" if described.upper().startswith("ARMV8") else normal_architecture(platform.machine())
    existing = next((each for each in (folder.absolute(), *folder.absolute().parents) if each.exists()), None)
    memory = psutil.virtual_memory()
    major, minor, micro = sys.version_info[:3]
    names = (described,) if described else ()
    return Facts(
        system=System.WINDOWS,
        android_kernel=False,
        architecture=architecture,
        soc=identify(names),
        soc_names=names,
        libc=Libc.OTHER,
        libc_version=None,
        python=Python(sys.executable, (major, minor, micro), built_for),
        free_bytes=shutil.disk_usage(existing).free if existing else None,
        memory_bytes=int(memory.total),
        available_bytes=int(memory.available),
        hexagon=Hexagon(),
    )
