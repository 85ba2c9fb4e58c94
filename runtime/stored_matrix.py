"""A matrix that stays in its file: rows are read when they are wanted, or all of them block after block.

Plain reads, not a map: every page of a map that was touched, and those around it, count as resident memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open

from .errors import BundleError

_DTYPES: dict[str, np.dtype[Any]] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
_BLOCK_BYTES = 8 * 2**20  # held once as it is stored, once in float32


@dataclass(frozen=True)
class StoredMatrix:
    """A tensor [N, D] of a safetensors file.

    Attributes
    ----------
    path
        The file.
    shape
        N and D.
    dtype
        float16 or float32, little-endian.
    offset
        Bytes of the file before the tensor.
    """

    path: Path
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    offset: int

    @staticmethod
    def find(path: Path, name: str) -> StoredMatrix:
        """Return the matrix ``name`` of a file; none of it is read.

        Raises
        ------
        BundleError
            When the file is missing or damaged, or has no such matrix.
        """
        try:
            # The library checks that every tensor lies within the file; where it lies is in the header alone.
            with safe_open(str(path), framework="numpy") as file:
                held = list(file.keys())
            with path.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(length))
        except (OSError, SafetensorError, ValueError) as error:
            raise BundleError(f"{path.name} cannot be read ({error}): export the bundle again") from error
        if name not in held:
            raise BundleError(f"{path.name} lacks {name!r}: export the bundle again")
        entry = header[name]
        if entry["dtype"] not in _DTYPES or len(entry["shape"]) != 2:
            raise BundleError(f"{name!r} in {path.name} is not a matrix of floats: export the bundle again")
        rows, width = entry["shape"]
        return StoredMatrix(path, (rows, width), _DTYPES[entry["dtype"]], 8 + length + entry["data_offsets"][0])

    def __getitem__(self, rows: ArrayLike) -> NDArray[Any]:
        """Return rows [..., D], of the file's dtype, for any array of their numbers [...].

        Raises
        ------
        IndexError
            When there is no such row.
        BundleError
            When the file has changed under the matrix.
        """
        wanted = np.asarray(rows, np.int64)
        distinct, places = np.unique(wanted, return_inverse=True)
        if len(distinct) and not 0 <= distinct[0] <= distinct[-1] < self.shape[0]:
            raise IndexError(f"rows {distinct[0]} to {distinct[-1]} of a matrix of {self.shape[0]}")
        held = np.empty((len(distinct), self.shape[1]), self.dtype)
        runs = [*np.flatnonzero(np.diff(distinct, prepend=-2) != 1), len(distinct)]
        with FileIO(self.path) as stream:
            for first, end in pairwise(runs):
                self._read(stream, int(distinct[first]), held[first:end])
        return held[places.reshape(wanted.shape)]

    def blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield all rows in blocks [n, D], in float32, each with the number of its first row.

        A block is valid until the next one is asked for.

        Raises
        ------
        BundleError
            When the file has changed under the matrix.
        """
        rows = max(1, _BLOCK_BYTES // (self.dtype.itemsize * self.shape[1]) // 64 * 64)  # as BLAS unrolls them
        buffer = np.empty((min(rows, self.shape[0]), self.shape[1]), self.dtype)
        with FileIO(self.path) as stream:
            for first in range(0, self.shape[0], rows):
                block = buffer[: self.shape[0] - first]
                self._read(stream, first, block)
                yield first, block.astype(np.float32, copy=False)

    def _read(self, stream: FileIO, first: int, into: NDArray[Any]) -> None:
        """Fill an array [n, D] with the rows from ``first`` on."""
        stream.seek(self.offset + first * self.shape[1] * self.dtype.itemsize)
        view = memoryview(into.reshape(-1).view(np.uint8))  # type: ignore[arg-type]  # numpy 1's stubs
        while view:
            if not (count := stream.readinto(view)):
                raise BundleError(f"{self.path.name} is shorter than it was: export the bundle again")
            view = view[count:]
