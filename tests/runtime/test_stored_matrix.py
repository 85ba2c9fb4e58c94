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


@pytest.mark.parametrize("block", [1, 60, 10**6])
def test_product_is_the_dense_one_when_it_is_made_in_blocks(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobiedit.runtime.stored_matrix._BLOCK_BYTES", block)
    rng = np.random.default_rng(1)
    matrix, vector = rng.standard_normal((33, 20)).astype(np.float32), rng.standard_normal(20).astype(np.float32)
    save_file({"m": matrix}, tmp_path / "m.safetensors")
    product = StoredMatrix.find(tmp_path / "m.safetensors", "m") @ vector
    assert product.dtype == np.float32
    np.testing.assert_allclose(product, matrix @ vector, rtol=1e-5, atol=1e-5)  # sums of 20 float32 terms near 1


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
