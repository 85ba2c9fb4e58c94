"""Memory that was freed goes back to the system. glibc alone needs to be told; elsewhere nothing is done."""

from __future__ import annotations

import ctypes
import sys

_MMAP_THRESHOLD = -3  # mallopt's name for it
_LARGE = 4 * 2**20


def return_large_blocks() -> None:
    """Let blocks of 4 MiB and more go back as soon as they are freed, in this process.

    By default glibc takes the size of what was freed for a reason to keep blocks of that size: of a ``w4`` graph's
    dequantised weights it keeps a hundred megabytes.
    """
    if (library := _glibc()) is not None:
        library.mallopt(_MMAP_THRESHOLD, _LARGE)


def release_freed_memory() -> None:
    """Give back what is held of freed memory: a session leaves much behind when it is made, and when it is closed."""
    if (library := _glibc()) is not None:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") and hasattr(library, "mallopt") else None
