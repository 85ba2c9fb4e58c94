"""Whether a checkpoint is the one that a bundle was exported from."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from mobiedit.runtime.bundle_layout import graph_file
from mobiedit.runtime.errors import BundleError, ExportError
from mobiedit.runtime.files import safe_child
from mobiedit.runtime.manifest import Manifest

from .checkpoint import Source, weights_sha256
from .rotation_stage import rotated_sha256
from .weight_update import rotation_name, rotation_of

TOLERANCE = 1e-4
"""How far the edit layer's weights may be apart, relative to the largest: a rotation's rounding in FP32 takes a
hundredth of that, and another layer or rotation is apart by its whole size."""

_DOWN = "mlp.down_proj.weight"  # what the edit graph calls it


def require_base(manifest: Manifest, source: Source) -> None:
    """See that the checkpoint's files are those of the export.

    Raises
    ------
    ExportError
        When they are not.
    """
    sha256 = weights_sha256(source)
    if (rotation := rotation_name(manifest)) is not None:
        sha256 = rotated_sha256(sha256, rotation)
    if sha256 != manifest.base.weights_sha256:
        raise ExportError(
            f"{source.name} is not the checkpoint that the bundle was exported from, {manifest.base.name}: "
            "its weight files are others; give that one as --base"
        )


def require_layer(folder: Path, manifest: Manifest, weight: NDArray[np.float32]) -> None:
    """See that the bundle's edit layer has the checkpoint's down projection, rotated where the bundle is.

    Parameters
    ----------
    weight
        [D, F] of the checkpoint.

    Raises
    ------
    ExportError
        When it has not, so that the edits would not do here what they do there.
    """
    held = _down_projection(folder)
    turn = rotation_of(manifest)
    expected = weight if turn is None else turn.T.astype(np.float32) @ weight
    if held.shape != expected.shape or np.abs(held - expected).max() > TOLERANCE * np.abs(expected).max():
        raise ExportError(
            f"the edit layer of {folder} is not layer {manifest.edit_layer} of the checkpoint: export the bundle again"
        )


def _down_projection(folder: Path) -> NDArray[np.float32]:
    """Return the edit graph's down projection [D, F]."""
    graph = onnx.load(folder / graph_file("edit"), load_external_data=False).graph
    for tensor in graph.initializer:
        if tensor.name == _DOWN:
            if not tensor.external_data:
                return np.asarray(onnx.numpy_helper.to_array(tensor), np.float32).T
            # Not by the library, which refuses hard links: a bundle may have them, and its files were verified.
            place = {entry.key: entry.value for entry in tensor.external_data}
            path, offset = safe_child(folder, place["location"]), int(place.get("offset", 0))
            count = math.prod(tensor.dims)
            return np.fromfile(path, "<f4", count, offset=offset).reshape(tensor.dims).T
    raise BundleError(f"{graph_file('edit')} has no weight {_DOWN}: export the bundle again")
