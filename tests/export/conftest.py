"""What the host side's tests share beside the models of all tests."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from mobiedit.calibration.activation_ranges import TensorRange
from mobiedit.export import fp32_stage, quantise_stage
from mobiedit.runtime.bundle_layout import RANGES


@pytest.fixture(scope="session")
def source_model(llama: Path) -> nn.Module:
    """The tiny Llama as transformers loads it; not to be changed."""
    return AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()


@pytest.fixture
def written_graphs(fp32_bundle: Path, w8a16_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the graphs of the session's bundles instead of writing the same ones again: an export in a second."""

    def copy(bundle: Path, target: Path) -> None:
        for path in bundle.glob(f"{target.name}*"):
            shutil.copy(path, target.parent)

    def copy_static(source: Path, target: Path, *_: object) -> dict[str, TensorRange]:
        copy(w8a16_bundle, target)
        ends = json.loads((w8a16_bundle / RANGES).read_text())["graphs"][target.stem]
        return {name: TensorRange(low, high) for name, (low, high) in ends.items()}

    monkeypatch.setattr(fp32_stage, "write_graph", lambda spec, path: copy(fp32_bundle, path))
    monkeypatch.setattr(quantise_stage, "quantise_static", copy_static)


@pytest.fixture
def contents() -> Callable[[Path], dict[str, str]]:
    """Return a function that gives the hash of every file below a folder, folders included by name."""

    def read(folder: Path) -> dict[str, str]:
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
            for path in sorted(folder.rglob("*"))
        }

    return read
