"""The checkpoint that edits are baked into: its tensors, and itself as a folder that transformers loads."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM

from mobiedit.runtime.files import library_storage_errors

from .checkpoint import Source, load_checkpoint, read_config
from .new_folder import copy_file

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx"}


class BaseCheckpoint(Protocol):
    """A checkpoint whose tensors are read by the names that transformers gives them."""

    config: Any

    def tensor(self, name: str) -> Tensor | None:
        """Return a tensor as it is stored, or None where there is no such one."""

    def save(self, folder: Path) -> tuple[str, ...]:
        """Write the model into an empty folder, and return the names of the files that were left out."""


def open_base(source: Source) -> BaseCheckpoint:
    """Return the checkpoint of a source.

    Raises
    ------
    ExportError
        As `read_config` and `load_checkpoint`.
    """
    return GgufCheckpoint(source) if source.gguf else SafetensorsFolder(source)


class SafetensorsFolder:
    """A folder with safetensors; tensors stay on their files' pages."""

    def __init__(self, source: Source) -> None:
        self.config = read_config(source)
        self._folder = source.folder

    @cached_property
    def _places(self) -> dict[str, Path]:
        places: dict[str, Path] = {}
        for path in weight_files(self._folder):
            with safe_open(str(path), framework="pt") as file:
                places |= dict.fromkeys(file.keys(), path)
        return places

    def tensor(self, name: str) -> Tensor | None:
        """Return a tensor as it is stored."""
        if name not in self._places:
            return None
        # The file is opened anew: as long as one map lives, all that was ever read of it counts as resident.
        with safe_open(str(self._places[name]), framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def save(self, folder: Path) -> tuple[str, ...]:
        """Copy the files; other formats of the weights, which transformers does not read, would keep the old ones."""
        read, left = set(weight_files(self._folder)), []
        for path in _files(self._folder):
            relative = path.relative_to(self._folder)
            if path.suffix.lower() in _WEIGHT_SUFFIXES and path not in read:
                left.append(str(relative))
            else:
                copy_file(path, folder / relative)
        return tuple(left)


class GgufCheckpoint:
    """A GGUF file, dequantised to FP32."""

    def __init__(self, source: Source) -> None:
        self._loaded = load_checkpoint(source)
        self.config = copy.deepcopy(self._loaded.model.config)
        if hasattr(self.config, "quantization_config"):
            del self.config.quantization_config  # it is not quantised any more
        self._tensors: dict[str, Tensor] = self._loaded.model.state_dict()

    def tensor(self, name: str) -> Tensor | None:
        """Return a tensor in FP32."""
        return self._tensors.get(name)

    def save(self, folder: Path) -> tuple[str, ...]:
        """Save model and tokenizer."""
        # The library refuses to save what it has loaded from GGUF.
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self.config, dtype=torch.float32)
        model.load_state_dict(self._tensors, assign=True)
        model.tie_weights()
        model.generation_config = self._loaded.model.generation_config
        with library_storage_errors():
            model.save_pretrained(folder)
            self._loaded.tokenizer.save_pretrained(folder)
        return ()


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that transformers reads."""
    index = folder / INDEX
    if (folder / SINGLE).is_file() or not index.is_file():
        return [folder / SINGLE]
    return [folder / name for name in sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))]


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder; hidden ones and linked folders are left out."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or (path.is_dir() and path.is_symlink()):
            continue
        yield from _files(path) if path.is_dir() else (path,)
