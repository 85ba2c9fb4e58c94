"""Free space on the device, asked for before anything is sent and when sending failed."""

from __future__ import annotations

import re

from .errors import DeviceError
from .shell import run_script
from .transport import Transport

_COLUMNS = re.compile(r"\s(\d+)\s+(\d+)\s+(\d+)\s+\d+%\s")
"""Of df: all blocks, used ones, free ones, per cent used. A name before or behind them may hold spaces."""
_RESERVE = 2**20
"""Bytes that shall stay free: folders and the journal need some too."""


def free_bytes(transport: Transport, folder: str) -> int:
    """Return how many bytes may be written below a folder on the device.

    Raises
    ------
    DeviceError
        If df fails or says something else.
    """
    said = run_script(transport, 'df -P -k "$1"', folder, doing=f"ask for the free space of {folder}")
    columns = _COLUMNS.search(said.decode("utf-8", "replace").partition("\n")[2])
    if columns is None:
        raise DeviceError(f"df on the device does not tell the free space of {folder}: run mobiedit-device doctor")
    return int(columns[3]) * 1024


def require_space(transport: Transport, folder: str, needed: int) -> None:
    """Refuse to write more than there is space for.

    Raises
    ------
    DeviceError
        If less is free.
    """
    if not needed:
        return
    free = free_bytes(transport, folder)
    if free < needed + _RESERVE:
        raise DeviceError(
            f"the device's disk is full: {(needed + _RESERVE) / 2**20:.1f} MiB are needed and {free / 2**20:.1f} MiB "
            f"are free at {folder}; free some space (mobiedit-device list and remove) and push again, which goes on "
            "from here; the current version is as it was"
        )
