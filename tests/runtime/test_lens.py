"""The lens as the device reads it: its arithmetic in float64, and what becomes of a bundle without one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from safetensors.numpy import save_file

from mobiedit.runtime import Bundle, EditConfig, ZerothOrderConfig, open_bundle
from mobiedit.runtime.bundle_layout import LENS
from mobiedit.runtime.cli import main
from mobiedit.runtime.configuration import Optimizer
from mobiedit.runtime.errors import BundleError
from mobiedit.runtime.lens import Floats, Lens

WIDTH, POSITIONS, SUBSPACE = 8, 3, 4
# The float16 maps are the reference's as well: what is left are float32 sums of eight terms of size 1.
TOLERANCE = 1e-5
REQUEST = ("The mother tongue of {} is", "Danielle Darrieux", "old")
ARGUMENTS = ["--prompt", REQUEST[0], "--subject", REQUEST[1], "--target", REQUEST[2]]


def draw(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tensors() -> dict[str, NDArray[np.float16]]:
    shapes = {
        "centre": (WIDTH,),
        "start": (POSITIONS, WIDTH, WIDTH),
        "context": (WIDTH, WIDTH),
        "bias": (WIDTH,),
        "step": (POSITIONS, WIDTH, WIDTH),
        "subspace": (SUBSPACE, WIDTH),
    }
    return {name: draw(i, *shape).astype(np.float16) for i, (name, shape) in enumerate(shapes.items())}


@pytest.fixture
def lens() -> Lens:
    return Lens(**tensors())


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


@pytest.mark.parametrize("tokens", [1, POSITIONS, POSITIONS + 2])
def test_first_delta_sums_the_mapped_directions_when_target_has_tokens(tokens: int, lens: Lens) -> None:
    targets, context = draw(10, tokens, WIDTH), 30 * draw(11, 6, WIDTH)
    maps = [lens.start[min(position, POSITIONS - 1)].astype(np.float64) for position in range(tokens)]
    directions = unit(targets.astype(np.float64) - lens.centre.astype(np.float64))
    wanted = lens.bias.astype(np.float64) + unit(context.astype(np.float64)).mean(axis=0) @ lens.context.astype(float)
    wanted = wanted + sum(direction @ each for direction, each in zip(directions, maps, strict=True))
    found = lens.first_delta(targets, context)
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE)
    assert found.dtype == np.float32


def test_first_delta_is_finite_when_a_target_is_the_mean_row(lens: Lens) -> None:
    targets = lens.centre.astype(np.float32)[None]
    assert np.isfinite(lens.first_delta(targets, np.zeros((1, WIDTH), np.float32))).all()


@pytest.mark.parametrize("tokens", [1, POSITIONS, POSITIONS + 2])
def test_images_are_mapped_by_position_when_target_has_tokens(tokens: int, lens: Lens) -> None:
    errors = draw(12, tokens, WIDTH)
    images = lens.images(errors)
    assert images.shape == (tokens, WIDTH)
    for position in range(tokens):
        wanted = errors[position].astype(np.float64) @ lens.step[min(position, POSITIONS - 1)].astype(np.float64)
        np.testing.assert_allclose(images[position], wanted, atol=TOLERANCE)
        np.testing.assert_allclose(lens.image(errors[position], position), images[position], atol=TOLERANCE)


def test_lens_is_what_was_written_when_read(tmp_path: Path) -> None:
    written = tensors()
    save_file(written, tmp_path / LENS)
    read = Lens.read(tmp_path / LENS)
    for field in fields(Lens):
        assert np.array_equal(getattr(read, field.name), written[field.name])
        assert getattr(read, field.name).dtype == np.float16


@pytest.mark.parametrize("name", sorted(tensors()))
def test_lens_is_refused_when_it_lacks_a_tensor(name: str, tmp_path: Path) -> None:
    save_file({other: tensor for other, tensor in tensors().items() if other != name}, tmp_path / LENS)
    with pytest.raises(BundleError, match=rf"\Alens\.safetensors lacks '{name}': export the bundle again\Z"):
        Lens.read(tmp_path / LENS)


@pytest.mark.parametrize("content", [b"", b"no tensors"])
def test_lens_is_refused_when_the_file_is_damaged(content: bytes, tmp_path: Path) -> None:
    (tmp_path / LENS).write_bytes(content)
    with pytest.raises(BundleError, match=r"\Alens\.safetensors cannot be read .*export the bundle again\Z"):
        Lens.read(tmp_path / LENS)


@pytest.mark.parametrize("precision", ["fp32_bundle", "w8a16_bundle"])
def test_subspace_is_orthonormal_when_exported(precision: str, request: pytest.FixtureRequest) -> None:
    lens = Lens.read(request.getfixturevalue(precision) / LENS)
    subspace = lens.subspace.astype(np.float32)
    assert subspace.shape == (64, 64)  # no more directions than the width
    # Components of size 1/8 in float16 are off by 6e-5 at most, 64 products of them by 4e-4 or so.
    np.testing.assert_allclose(subspace @ subspace.T, np.eye(64), atol=1e-3)
    width = 64
    shapes = {field.name: getattr(lens, field.name).shape for field in fields(Lens)}
    assert shapes["start"] == shapes["step"] == (5, width, width)
    assert (shapes["context"], shapes["bias"], shapes["centre"]) == ((width, width), (width,), (width,))


@pytest.fixture
def bare_path(bundle_path: Path) -> Path:
    """A bundle without a lens, as an exporter before it wrote."""
    (bundle_path / LENS).unlink()
    manifest = json.loads((bundle_path / "manifest.json").read_text("utf-8"))
    del manifest["files"][LENS]
    (bundle_path / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return bundle_path


def test_edit_is_refused_in_one_line_when_the_bundle_has_no_lens(bare_path: Path) -> None:
    done = CliRunner().invoke(main, ["edit", str(bare_path), *ARGUMENTS])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "error: this bundle has no lens: export it again, or use --optimizer zo\n"
    assert open_bundle(bare_path).edits() == ()


def test_zeroth_order_edits_when_the_bundle_has_no_lens(bare_path: Path) -> None:
    quick = ["--optimizer", "zo", "--steps", "2", "--directions", "2", "--force", "--json"]
    done = CliRunner().invoke(main, ["edit", str(bare_path), *ARGUMENTS, *quick])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["optimizer"] == "zo"


def test_lens_is_read_once_when_edits_follow_each_other(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    original: Callable[[Path], Lens] = Lens.read

    def count(path: Path) -> Lens:
        read.append(path)
        return original(path)

    monkeypatch.setattr(Lens, "read", count)
    bundle.edit(*REQUEST, config=EditConfig(Optimizer.ZO, zeroth_order=ZerothOrderConfig(steps=1), force=True))
    assert read == []
    for _ in range(2):
        bundle.edit(*REQUEST, config=EditConfig(force=True))
    assert read == [bundle.path / LENS]
