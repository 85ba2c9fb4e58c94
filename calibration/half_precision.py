"""Whether half precision saves time on this host."""

from __future__ import annotations

import time

import torch


def bfloat16_pays() -> bool:
    """Return whether bfloat16 products are faster here than float32: many processors gain much, others emulate it."""
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(256, 512, dtype=dtype), torch.ones(512, 1024, dtype=dtype)
        a @ b
        began = time.perf_counter()
        for _ in range(10):
            a @ b
        seconds.append(time.perf_counter() - began)
    return seconds[1] < seconds[0] / 2
