"""Matrices that stay in their file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from mobiedit.runtime.errors import BundleError
from mobiedit.runtime.stored_matrix import StoredMatrix

ROWS, WIDTH = 50, 7


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float16)


@pytest.fixture(scope="module")
def path(values: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "x.safetensors"
    save_file({"before": np.ones((3, 5), np.float32), "rows": values, "vector": np.ones(4, np.float32)}, path)
    return path


@given(rows=st.lists(st.integers(0, ROWS - 1), max_size=30))
def test_rows_are_those_of_the_array_when_they_are_any(rows: list[int], path: Path, values: np.ndarray) -> None:
    taken = StoredMatrix.find(path, "rows")[rows]
    assert taken.dtype == np.float16
    np.testing.assert_array_equal(taken, values[np.array(rows, np.int64)])


def test_rows_keep_the_shape_when_their_numbers_are_a_batch(path: Path, values: np.ndarray) -> None:
    wanted = np.array([[3, 4, 5], [5, 0, 49]])
    np.testing.assert_array_equal(StoredMatrix.find(path, "rows")[wanted], values[wanted])


@pytest.mark.parametrize("row", [-1, ROWS])
def test_row_is_refused_when_there_is_none(row: int, path: Path) -> None:
    with pytest.raises(IndexError):
        StoredMatrix.find(path, "rows")[[0, row]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("block", [1, 60, 10**6])
def test_blocks_are_all_rows_in_order_when_they_are_any_size(
    block: int, dtype: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobiedit.runtime.stored_matrix._BLOCK_BYTES", block)
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal((33, 20)).astype(dtype)
    save_file({"m": matrix}, tmp_path / "m.safetensors")
    found = [(first, block.copy()) for first, block in StoredMatrix.find(tmp_path / "m.safetensors", "m").blocks()]
    rows = np.concatenate([rows for _, rows in found])
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, matrix)
    assert [first for first, _ in found] == [sum(len(rows) for _, rows in found[:i]) for i in range(len(found))]


@pytest.mark.parametrize("name", ["absent", "vector"])
def test_tensor_is_refused_when_it_is_no_such_matrix(name: str, path: Path) -> None:
    with pytest.raises(BundleError, match="export the bundle again"):
        StoredMatrix.find(path, name)


def test_file_is_refused_when_it_is_cut_short_or_its_header_points_outside(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header["rows"]["data_offsets"] = [10**9, 10**9 + ROWS * WIDTH * 2]
    outside = json.dumps(header).encode()
    files = {
        "cut": whole[:-1],
        "header": whole[: length // 2],
        "empty": b"",
        "outside": len(outside).to_bytes(8, "little") + outside + whole[8 + length :],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BundleError, match="cannot be read"):
            StoredMatrix.find(tmp_path / name, "rows")
    with pytest.raises(BundleError, match="cannot be read"):
        StoredMatrix.find(tmp_path / "nowhere", "rows")


def test_reading_is_refused_when_the_file_shrinks_later(path: Path, tmp_path: Path) -> None:
    (copy := tmp_path / "copy").write_bytes(path.read_bytes())
    matrix = StoredMatrix.find(copy, "rows")
    copy.write_bytes(path.read_bytes()[: matrix.offset + 10])
    with pytest.raises(BundleError, match="shorter"):
        matrix[[ROWS - 1]]
