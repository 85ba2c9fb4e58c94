"""One tensor of a file is replaced, to the byte, and all else stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mobiedit.export.stored_tensor import StoredTensor
from mobiedit.runtime.errors import ExportError

KINDS = (torch.float32, torch.bfloat16, torch.float16)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(KINDS), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_only_the_tensor_changes_when_it_is_written(
    tmp_path_factory: pytest.TempPathFactory, kind: torch.dtype, rows: int, columns: int, seed: int
) -> None:
    path = tmp_path_factory.mktemp("tensors") / "model.safetensors"
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(rows, columns, generator=generator).to(kind) for name in ("a", "b", "c")}
    save_file(tensors, path, metadata={"format": "pt"})
    numbers = torch.randn(rows, columns, generator=generator)
    rounded = StoredTensor.find([path], "b").write(numbers)
    after = load_file(path)
    assert torch.equal(after["b"], numbers.to(kind))
    assert torch.equal(rounded, after["b"].float())
    assert torch.equal(after["a"], tensors["a"])
    assert torch.equal(after["c"], tensors["c"])


def test_tensor_is_found_in_the_file_that_has_it(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({name: torch.ones(2, 3)}, tmp_path / f"{name}.safetensors")
    found = StoredTensor.find(sorted(tmp_path.iterdir()), "b")
    assert (found.path.name, found.shape, found.dtype) == ("b.safetensors", (2, 3), torch.float32)


def test_tensor_is_refused_when_missing_quantised_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(2, 3, dtype=torch.int8)}, path)
    with pytest.raises(ExportError, match="a is stored as I8, not as F32, BF16, F16: give"):
        StoredTensor.find([path], "a")
    with pytest.raises(ExportError, match="has no weight b: give"):
        StoredTensor.find([path], "b")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ExportError, match=r"model\.safetensors cannot be read .*: get an intact checkpoint"):
        StoredTensor.find([path], "a")
