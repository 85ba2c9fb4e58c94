"""Freed memory goes back to the system."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import ctypes
from mobiedit.runtime.heap import release_freed_memory, return_large_blocks
def resident():
    return int(open("/proc/self/statm").read().split()[1])
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def used(size, count):
    blocks = [libc.malloc(size) for _ in range(count)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    held = resident()
    for block in blocks[:-1]:  # the last one keeps the others from the top of the heap
        libc.free(block)
    return held - resident()
if {large}:
    return_large_blocks()
    libc.free(libc.malloc(16 * 2**20))  # would teach glibc to keep blocks of this size
    print(used(8 * 2**20, 8) * 4096)
else:
    before = used(2**16, 1024)
    held = resident()
    release_freed_memory()
    print((held - resident()) * 4096)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux tells what is resident")
@pytest.mark.parametrize("large", [True, False])
def test_freed_memory_is_returned_when_it_was_asked_for(large: bool) -> None:
    program = _PROGRAM.replace("{large}", str(large))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 40 * 2**20  # of 56 and 64 MiB that were freed
