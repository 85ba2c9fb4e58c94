"""Bring the edits home: the device's journal merged into the bundle on the host."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mobiedit.runtime.bundle_layout import EDITS
from mobiedit.runtime.errors import BundleError
from mobiedit.runtime.journal_merge import merge_into
from mobiedit.runtime.manifest import read_manifest

from .carried_edits import device_records
from .errors import DeviceError
from .layout import BundlePlace
from .transport import Transport
from .versions import read_versions, require_current, survey


@dataclass(frozen=True)
class PullResult:
    """What a pull brought.

    Attributes
    ----------
    bundle, version
        The bundle's name on the device and its current version there.
    new_edits, undone
        Identifiers of edits that the host did not have, and of those that were withdrawn on the device.
    forgotten
        Those of edits that the device forgot, which are erased here now.
    replaced
        Those of the host's edits that are covered now: the device taught the same facts, and its edits come later.
    edits
        Edits in force on the host now.
    """

    bundle: str
    version: str
    new_edits: tuple[str, ...]
    undone: tuple[str, ...]
    forgotten: tuple[str, ...]
    replaced: tuple[str, ...]
    edits: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def pull_edits(transport: Transport, place: BundlePlace, bundle: Path) -> PullResult:
    """Merge the journal of a bundle on the device into that of the bundle on this host.

    Raises
    ------
    DeviceError
        If the device does not have the bundle, or one of another base.
    JournalError
        If a journal is damaged, or the two do not go together; nothing is written.
    BusyError
        If another process edits the bundle here.
    TransportError
        If the connection fails; nothing is written.
    """
    if not bundle.is_dir():
        raise BundleError(f"{bundle} is not a folder: give the bundle that the edits shall come to")
    if (bundle / EDITS).is_symlink():
        raise BundleError(f"{bundle / EDITS} is a link: put the folder itself there")
    manifest = read_manifest(bundle)
    found = survey(transport, place)
    current = require_current(found, place)
    versions = read_versions(transport, place, found)
    there = versions[0].manifest
    if there is not None and there.edit_base != manifest.edit_base:
        raise DeviceError(
            f"the device's {place.name!r} is of another base ({there.base.name}, edit layer {there.edit_layer}) than "
            f"{bundle} ({manifest.base.name}, edit layer {manifest.edit_layer}): pull into the bundle that was pushed, "
            "or give its --name"
        )
    records = device_records(versions, manifest.edit_base)
    merged = merge_into(bundle / EDITS, manifest.edit_base, manifest.slots, records)
    return PullResult(
        place.name, current, merged.edits, merged.undone, merged.forgotten, merged.replaced, merged.active
    )
