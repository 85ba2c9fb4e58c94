"""The edits in force as one change of one weight of the source model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mobiedit.calibration.rotation import Matrix, named_rotation
from mobiedit.runtime.bundle import Bundle
from mobiedit.runtime.bundle_layout import KEY_STATISTICS
from mobiedit.runtime.closed_form import Method
from mobiedit.runtime.decoder import Slots
from mobiedit.runtime.edit_set import EditSet
from mobiedit.runtime.errors import BundleError, RequestError
from mobiedit.runtime.journal_records import EditRecord
from mobiedit.runtime.key_statistics import KeyStatistics
from mobiedit.runtime.manifest import Manifest, ModelShape
from mobiedit.runtime.rank_one import InverseCovariance

Floats = NDArray[np.float32]
_RCOND = 1e-7  # what FP32 keys are known to: edits of one subject may have the same


@dataclass(frozen=True, eq=False)
class WeightUpdate:
    """``W += deltas.T @ directions``, in the source model's own residual stream.

    Attributes
    ----------
    module
        The edit layer's down projection, by its name in transformers; the four families call it the same.
    deltas
        [N, D] float32.
    directions
        [N, F] float32.
    keys
        [E, F] float32, k* of each edit.
    gated
        How many of the edits have a gate in the bundle, which a weight cannot hold.
    """

    module: str
    deltas: Floats
    directions: Floats
    keys: Floats
    gated: int = 0

    @property
    def weight(self) -> str:
        """The weight's name in a checkpoint."""
        return f"{self.module}.weight"

    @property
    def matrix(self) -> Floats:
        """[D, F] what is added to the weight."""
        return np.asarray(self.deltas.T @ self.directions)

    def sparing(self, key: Floats, inverse_covariance: InverseCovariance) -> WeightUpdate:
        """Return an update that does nothing at one more key and, at the edits' own keys, what this one does.

        In a bundle the sink token's K and V are constants, which no edit reaches; in a checkpoint it passes the edited
        weight like any other token, and everything behind it attends to it. The change of the directions is taken from
        the span of ``C^-1 key`` and of the directions, ``C^-1 k*`` of the edits: for equality constraints the least
        change under C lies there (EMMET, Gupta et al. 2024, arXiv 2403.14236).

        Parameters
        ----------
        key
            [F] that is spared.
        inverse_covariance
            Of the edit layer's keys.
        """
        spread = inverse_covariance @ key
        span = np.vstack([spread / (key @ spread), self.directions]).astype(np.float64)
        places = np.vstack([key, self.keys]).astype(np.float64)
        wanted = np.zeros((len(self.directions), len(places)))
        wanted[:, 0] = -self.directions @ key
        correction = wanted @ np.linalg.pinv(span @ places.T, rcond=_RCOND) @ span
        return replace(self, directions=(self.directions + correction).astype(np.float32))


def update_of(bundle: Bundle) -> WeightUpdate:
    """Return what the bundle's edits change in the source model.

    A rotated bundle's deltas are turned back: its residual stream is ``x @ turn``, and what writes into it was
    ``turn.T @ W`` (QuaRot, Ashkboos et al. 2024, section 4). Keys, the inputs of the projection, are not rotated.

    Raises
    ------
    RequestError
        When there are no edits.
    BundleError
        As `rotation_of`.
    """
    manifest, edits = bundle.manifest, bundle.edits()
    slots = linear_slots(edits, manifest.shape)
    used = slots.deltas.any(axis=1) & slots.directions.any(axis=1)
    if not used.any():
        raise RequestError(f"{bundle.path} has no edits in force, there is nothing to bake: teach it something first")
    deltas = slots.deltas[used]
    if (turn := rotation_of(manifest)) is not None:
        deltas = (deltas @ turn.T).astype(np.float32)
    module = f"model.layers.{manifest.edit_layer}.mlp.down_proj"
    gated = sum(edit.gate is not None for edit in edits)
    return WeightUpdate(module, deltas, slots.directions[used], np.stack([edit.key for edit in edits]), gated)


def linear_slots(edits: Sequence[EditRecord], shape: ModelShape) -> Slots:
    """Return edits as one change of the weight, each with a slot of its own.

    A weight cannot hold a gate: gated edits act in proportion here, and are solved by EMMET's equality constraints.
    """
    linear = [edit if edit.gate is None else replace(edit, gate=None, method=Method.EMMET) for edit in edits]
    return EditSet(linear, max(1, len(linear)), shape).slots


def inverse_covariance_of(bundle: Bundle) -> InverseCovariance:
    """Return C^-1 of the edit layer's keys."""
    return KeyStatistics.find(bundle.path / KEY_STATISTICS)


def rotation_name(manifest: Manifest) -> str | None:
    """Return what the bundle's rotation is called, or None where it has none."""
    name = manifest.statistics.get("rotation", {}).get("name")
    return None if name is None else str(name)


def rotation_of(manifest: Manifest) -> Matrix | None:
    """Return the rotation [D, D] of the bundle's residual stream, or None where it has none.

    Raises
    ------
    BundleError
        When it is none that this version makes.
    """
    if (name := rotation_name(manifest)) is None:
        return None
    if (matrix := named_rotation(name, manifest.shape.width)) is None:
        raise BundleError(f"the bundle's rotation {name!r} is not known here: bake with the version that exported it")
    return matrix
