"""One tensor of a safetensors checkpoint: replaced in its file, all else in the file stays as it is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mobiedit.calibration.widened import HALVES
from mobiedit.runtime.errors import ExportError

_DTYPES = {"F32": torch.float32, **HALVES}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's bytes lie.

    Attributes
    ----------
    path
        Its file.
    dtype
        float32, bfloat16 or float16.
    offset
        Bytes of the file before it.
    """

    path: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @classmethod
    def find(cls, paths: Iterable[Path], name: str) -> Self:
        """Return the tensor ``name`` of a checkpoint's files; none of its numbers are read.

        Raises
        ------
        ExportError
            When no file has it, one is damaged, or it is of another dtype.
        """
        for path in paths:
            entry, start = _entry(path, name)
            if entry is None:
                continue
            if entry["dtype"] not in _DTYPES:
                known = ", ".join(_DTYPES)
                raise ExportError(
                    f"{name} is stored as {entry['dtype']}, not as {known}: give the unquantised checkpoint"
                )
            return cls(path, name, _DTYPES[entry["dtype"]], tuple(entry["shape"]), start + entry["data_offsets"][0])
        raise ExportError(f"the checkpoint has no weight {name}: give the one that the bundle was exported from")

    def write(self, numbers: Tensor) -> Tensor:
        """Put other numbers durably in its place; return them as they were rounded, in float32."""
        assert tuple(numbers.shape) == self.shape
        rounded = numbers.to(self.dtype).contiguous()
        with self.path.open("r+b") as file:
            file.seek(self.offset)
            file.write(memoryview(rounded.view(torch.uint8).numpy()))
            file.flush()
            os.fsync(file.fileno())
        return rounded.float()


def _entry(path: Path, name: str) -> tuple[dict[str, Any] | None, int]:
    """Return what a file's header says of a tensor, and where the tensors begin."""
    try:
        # The library checks that every tensor lies within the file; where it lies is in the header alone.
        with safe_open(str(path), framework="pt"), path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            return json.loads(stream.read(length)).get(name), 8 + length
    except (SafetensorError, ValueError) as error:
        raise ExportError(f"{path.name} cannot be read ({error}): get an intact checkpoint") from error
