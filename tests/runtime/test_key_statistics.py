"""The key statistics of a bundle as an operator that stays in its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from mobiedit.runtime.errors import BundleError
from mobiedit.runtime.key_statistics import KeyStatistics

RANK, WIDTH = 9, 20
TOLERANCE = 1e-5  # sums of 20 float32 terms near 1


def parts() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((WIDTH, RANK)))[0].T
    values = np.linspace(30, 2, RANK)
    return {
        "directions": np.ascontiguousarray(basis.astype(np.float16)),
        "weights": (1 - 1 / values).astype(np.float32),
        "scale": rng.uniform(0.5, 2, WIDTH).astype(np.float32),
    }


def dense(tensors: dict[str, np.ndarray]) -> np.ndarray:
    u, w, s = (tensors[name].astype(np.float64) for name in ("directions", "weights", "scale"))
    return s[:, None] * (np.eye(WIDTH) - (u.T * w) @ u) * s


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("statistics") / "key_statistics.safetensors"
    save_file(parts(), path)
    return path


@pytest.mark.parametrize("block", [1, 2 * 64 * WIDTH, 10**6])
@pytest.mark.parametrize("rank", [RANK, 1])
def test_product_is_the_dense_one_when_blocks_are_any(
    block: int, rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobiedit.runtime.stored_matrix._BLOCK_BYTES", block)
    tensors = parts()
    tensors |= {"directions": tensors["directions"][:rank], "weights": tensors["weights"][:rank]}
    save_file(tensors, tmp_path / "s")
    key = np.random.default_rng(1).standard_normal(WIDTH).astype(np.float32)
    product = KeyStatistics.find(tmp_path / "s") @ key
    assert (product.shape, product.dtype) == ((WIDTH,), np.float32)
    np.testing.assert_allclose(product, dense(tensors) @ key, rtol=TOLERANCE, atol=TOLERANCE)


@given(count=st.integers(1, 7), seed=st.integers(0, 99))
def test_products_of_many_keys_are_those_of_each_when_they_are_any(count: int, seed: int, path: Path) -> None:
    statistics = KeyStatistics.find(path)
    keys = np.random.default_rng(seed).standard_normal((WIDTH, count)).astype(np.float32)
    products = statistics @ keys
    assert (products.shape, products.dtype) == ((WIDTH, count), np.float32)
    each = np.stack([statistics @ key for key in keys.T], axis=1)
    np.testing.assert_allclose(products, each, rtol=TOLERANCE, atol=TOLERANCE)


def test_directions_are_read_once_when_keys_are_many(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mobiedit.runtime.stored_matrix import StoredMatrix

    calls: list[None] = []
    blocks = StoredMatrix.blocks
    monkeypatch.setattr(StoredMatrix, "blocks", lambda matrix: calls.append(None) or blocks(matrix))
    KeyStatistics.find(path) @ np.ones((WIDTH, 5), np.float32)
    assert len(calls) == 1


def test_keys_are_refused_when_their_width_is_another(path: Path) -> None:
    with pytest.raises(BundleError, match="for keys of width 20, not 21: export the bundle again"):
        KeyStatistics.find(path) @ np.ones(WIDTH + 1, np.float32)


def test_leading_directions_are_left_alone_when_null_space_is_taken(path: Path) -> None:
    tensors = parts()
    statistics, units = KeyStatistics.find(path), np.eye(WIDTH, dtype=np.float32)
    values = 1 / (1 - tensors["weights"].astype(np.float64))
    total = values.sum() + WIDTH - RANK
    for top in (1, 4, RANK):
        projected = statistics.null_space((values[:top].sum() - 0.1) / total) @ units
        # What an update does to a key of a direction: S u in the keys' own space.
        left = projected @ (tensors["directions"].astype(np.float32) / tensors["scale"]).T
        norms = np.linalg.norm(left, axis=0)
        assert (norms[:top] < 5e-3).all()  # float16 directions are orthonormal to 1e-3
        assert (norms[top:] > 0.3).all()
    np.testing.assert_array_equal(statistics.null_space(1.0).weights, np.ones(RANK))
    assert statistics.weights[0] < 1  # as it was


@pytest.mark.parametrize("share", [0.0, -1.0, 1.1, float("nan")])
def test_share_is_refused_when_it_is_none(share: float, path: Path) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        KeyStatistics.find(path).null_space(share)


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
    tensors = parts()
    return {**tensors, name: np.ascontiguousarray(change(tensors[name]))}


def with_value(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(tensor: np.ndarray) -> np.ndarray:
        tensor[3] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("weights", lambda t: t[:-1]),
        ("scale", lambda t: t[:-1]),
        ("scale", lambda t: t.reshape(4, 5)),
        ("directions", lambda t: t[:, :-1]),
        ("directions", lambda t: t[0]),
        ("directions", lambda t: t[:0]),
        ("directions", lambda t: t.astype(np.float32)),
        ("directions", lambda t: t.astype(np.int8)),
        ("weights", lambda t: t.astype(np.float64)),
        ("scale", lambda t: t.astype(np.float16)),
        ("weights", with_value(1.5)),
        ("weights", with_value(-0.1)),
        ("weights", with_value(np.nan)),
        ("scale", with_value(0)),
        ("scale", with_value(np.inf)),
        ("scale", with_value(np.nan)),
    ],
)
def test_file_is_refused_in_one_line_when_a_tensor_is_another(
    name: str, change: Callable[[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    save_file(changed(name, change), tmp_path / "key_statistics.safetensors")
    with pytest.raises(BundleError, match=r"\A[^\n]*key_statistics.safetensors[^\n]*: export the bundle again\Z"):
        KeyStatistics.find(tmp_path / "key_statistics.safetensors")


@pytest.mark.parametrize("name", ["directions", "weights", "scale"])
def test_file_is_refused_when_a_tensor_is_missing(name: str, tmp_path: Path) -> None:
    tensors = parts()
    del tensors[name]
    save_file(tensors, tmp_path / "s")
    with pytest.raises(BundleError, match=f"s lacks '{name}': export the bundle again"):
        KeyStatistics.find(tmp_path / "s")


def test_file_is_refused_when_it_is_cut_or_of_the_former_form(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    for length in (0, 5, 60, len(whole) // 2, len(whole) - 1):
        (tmp_path / "s").write_bytes(whole[:length])
        with pytest.raises(BundleError, match="cannot be read"):
            KeyStatistics.find(tmp_path / "s")
    save_file({"inverse_covariance": np.eye(4, dtype=np.float32)}, tmp_path / "s")
    with pytest.raises(BundleError, match="lacks 'directions'"):
        KeyStatistics.find(tmp_path / "s")
