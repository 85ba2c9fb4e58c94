"""Back to the version before: it becomes current, and the edits come along."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mobiedit.runtime.journal_state import in_force

from .carried_edits import device_records, erase_forgotten, merged_records, write_journal
from .errors import DeviceError
from .flip import Flip, flip
from .layout import BundlePlace
from .lock import device_lock
from .staged_files import is_intact
from .transport import Transport
from .versions import read_versions, require_current, survey


@dataclass(frozen=True)
class RollbackResult:
    """What a rollback did.

    Attributes
    ----------
    bundle
        The bundle's name.
    version, former
        The version that is current now, and the one that was; another rollback goes back to it.
    edits
        Edits in force now.
    """

    bundle: str
    version: str
    former: str
    edits: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def rollback(
    transport: Transport, place: BundlePlace, *, drop_edits: bool = False, break_lock: bool = False
) -> RollbackResult:
    """Make the previous version of a bundle current, once its files are verified on the device.

    Parameters
    ----------
    drop_edits
        Leave behind the edits of a current version that has another base.

    Raises
    ------
    DeviceError
        If there is no previous version, it is damaged, or edits would be left behind.
    JournalError
        If the edits do not go with it.
    """
    require_current(survey(transport, place), place)
    with device_lock(transport, place.layout, f"roll {place.name} back", break_lock=break_lock):
        found = survey(transport, place)
        former = require_current(found, place)
        if found.previous is None:
            raise DeviceError(f"{place.name!r} has no version but {former} on the device: push the one that you want")
        current, previous = read_versions(transport, place, found)
        if previous.manifest is None or not is_intact(transport, previous.path, previous.manifest.files):
            raise DeviceError(
                f"version {previous.name} is damaged on the device: push the bundle that you want; "
                f"{former} stays current"
            )
        base = previous.manifest.edit_base
        records = device_records((current, previous), base, drop_edits=drop_edits)
        records = merged_records(records, (), previous.manifest.slots)
        write_journal(transport, previous.path, records)
        flip(transport, place, Flip(previous.name, current))
        erase_forgotten(transport, (current,), records)
    return RollbackResult(place.name, previous.name, former, len(in_force(records)))
