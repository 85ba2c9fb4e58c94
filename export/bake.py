"""Bake: a bundle's edits in the original checkpoint, or beside it as an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mobiedit.runtime.bundle import Bundle
from mobiedit.runtime.errors import ExportError

from .adapter import write_adapter
from .base_check import require_base, require_layer
from .base_model import BaseCheckpoint, open_base, weight_files
from .checkpoint import find_source
from .first_token_key import first_token_key
from .new_folder import new_folder
from .stored_tensor import StoredTensor
from .weight_update import WeightUpdate, inverse_covariance_of, update_of

NOTABLE_ROUNDING = 0.01
"""Share of an edit that is lost to rounding, from which on it is said."""


@dataclass(frozen=True)
class BakeReport:
    """What was written.

    Attributes
    ----------
    rank
        Of the change of the weight: the number of edits.
    weight
        Its name.
    dtype
        What the checkpoint, or the adapter, stores it as.
    rounding
        The largest share of an edit's change of the value, at its key, that is lost to that; 0 for an adapter.
    notes
        What the user should know.
    """

    rank: int
    weight: str
    dtype: str
    rounding: float
    notes: tuple[str, ...] = ()


def bake(bundle: Bundle, base: str, out: Path, *, lora: bool = False, revision: str | None = None) -> BakeReport:
    """Write the edits in force to a Hugging Face folder.

    A folder of safetensors is copied file by file and the bytes of one weight are replaced in the copy, so that no
    more than a layer is ever in memory. GGUF is dequantised.

    Parameters
    ----------
    base
        The checkpoint that the bundle was exported from, as the exporter's MODEL.
    out
        The folder; nothing may be there.
    lora
        Write the edits alone, as a PEFT adapter.
    revision
        Of a Hub id; by default the one that the manifest names.

    Raises
    ------
    RequestError
        When there are no edits.
    ExportError
        When the base is another checkpoint, or the place is taken.
    StorageError
        When the disk refuses; nothing is left behind.
    """
    update, manifest = update_of(bundle), bundle.manifest
    held = f"a weight cannot hold a gate: {update.gated} gated edits act in proportion here, also on other keys"
    notes = (held,) if update.gated else ()
    with new_folder(out) as folder:
        source = find_source(base, revision or manifest.base.revision)
        require_base(manifest, source)
        model = open_base(source)
        weight = _weight(model, update.weight)
        require_layer(bundle.path, manifest, weight)
        key = first_token_key(model.tensor, model.config, manifest.sink_token, manifest.edit_layer)
        update = update.sparing(key, inverse_covariance_of(bundle))
        if lora:
            write_adapter(folder, update, base, source.revision)
            return BakeReport(len(update.deltas), update.weight, "float32", 0.0, notes)
        return _write_checkpoint(model, update, weight, folder, notes)


def _weight(model: BaseCheckpoint, name: str) -> NDArray[np.float32]:
    tensor = model.tensor(name)
    if tensor is None:
        raise ExportError(f"the checkpoint has no weight {name}: give the one that the bundle was exported from")
    return np.asarray(tensor.float().numpy())


def _write_checkpoint(
    model: BaseCheckpoint, update: WeightUpdate, weight: NDArray[np.float32], folder: Path, notes: tuple[str, ...]
) -> BakeReport:
    left = model.save(folder)
    stored, change = StoredTensor.find(weight_files(folder), update.weight), update.matrix
    written = stored.write(torch.from_numpy(weight + change)).numpy()
    lost = _largest_loss(written - weight, change, update.keys)
    dtype = str(stored.dtype).removeprefix("torch.")
    notes += tuple(f"left out, since it would keep the old weights: {name}" for name in left)
    if lost > NOTABLE_ROUNDING:
        notes += (f"rounding to {dtype} takes {lost:.1%} of an edit: --lora keeps it whole",)
    return BakeReport(len(update.deltas), update.weight, dtype, lost, notes)


def _largest_loss(made: NDArray[np.float32], wanted: NDArray[np.float32], keys: NDArray[np.float32]) -> float:
    """Return how much of the change of a value a key misses, relative to the change, for the key that misses most."""
    missed, whole = np.linalg.norm((made - wanted) @ keys.T, axis=0), np.linalg.norm(wanted @ keys.T, axis=0)
    return float((missed[whole > 0] / whole[whole > 0]).max(initial=0.0))
