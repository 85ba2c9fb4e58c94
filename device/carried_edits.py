"""Edits live in a version's journal; when another version becomes current they go with it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress

from mobiedit.runtime.bundle_layout import EDITS
from mobiedit.runtime.errors import MobiEditError
from mobiedit.runtime.journal import JOURNAL_NAME, journal_bytes
from mobiedit.runtime.journal_merge import merge_records, require_slots
from mobiedit.runtime.journal_records import EditRecord, ForgetRecord, Record

from .errors import DeviceError
from .shell import run_script
from .transport import Transport
from .versions import Version

# The journal is personal: 0600 by the prelude's umask. `$4` is the digest of the one that is replaced, or "any".
_WRITE = r"""cd "$1" && no_links "$2" "$2/$3" && mkdir -p "$2" && cat >"$2/.$3.new" || exit 1
[ "$(digest "$2/.$3.new")" = "$5" ] || refuse "the journal arrived damaged on the device: try again"
[ "$4" = any ] || [ "$(digest "$2/$3")" = "$4" ] || refuse "an edit was made on the device meanwhile: try again"
mv -T "$2/.$3.new" "$2/$3" """


def device_records(versions: Sequence[Version], base_sha256: str, *, drop_edits: bool = False) -> tuple[Record, ...]:
    """Return the records of the device's journals that belong to a base.

    An edit that ran while a push made another version current was committed to the version that it had opened. So the
    other versions' journals are looked at as well; most often they have nothing new.

    Parameters
    ----------
    versions
        The current one first.
    drop_edits
        Leave behind what the current one has of another base, or in a damaged journal.

    Raises
    ------
    DeviceError
        If the current version has edits of another base.
    JournalError
        If its journal is damaged.
    """
    records: tuple[Record, ...] = ()
    for index, version in enumerate(versions):
        try:
            records = merge_records(records, _records(version, base_sha256))
        except MobiEditError:
            if index == 0 and not drop_edits:
                raise
    return records


def _records(version: Version, base_sha256: str) -> tuple[Record, ...]:
    own_base = version.manifest.edit_base if version.manifest else base_sha256
    state = version.edits(own_base)
    if own_base == base_sha256:
        return state.records
    if state.edits:
        raise DeviceError(
            f"the device's version {version.name} holds {len(state.edits)} edits of another base (weights, edit layer "
            "or sink token differ): pull them into the bundle that they were made with, then try again "
            "with --drop-edits"
        )
    return ()


def merged_records(device: Sequence[Record], local: Sequence[Record], slots: int) -> tuple[Record, ...]:
    """Return the records of a version that gets both: the device's first.

    Raises
    ------
    JournalError
        If the slots do not suffice, or an edit differs on the two sides.
    """
    merged = merge_records(device, local)
    require_slots(merged, slots)
    return merged


def erase_forgotten(transport: Transport, versions: Sequence[Version], records: Sequence[Record]) -> None:
    """Erase from the journals of other versions what was forgotten; one that is damaged is left as it is.

    Parameters
    ----------
    records
        Those of the current version.

    Raises
    ------
    DeviceError
        If the device refuses, or an edit was made in such a version meanwhile.
    """
    tombstones = [record for record in records if isinstance(record, ForgetRecord)]
    names = {record.edit_id for record in tombstones}
    for version in versions:
        own: tuple[Record, ...] = ()
        with suppress(MobiEditError):
            own = version.edits().records
        if any(isinstance(record, EditRecord) and record.edit_id in names for record in own):
            write_journal(transport, version.path, merge_records(own, tombstones), version.journal_sha256)


def write_journal(transport: Transport, folder: str, records: Sequence[Record], replaced_sha256: str = "any") -> None:
    """Give a version on the device its journal, whole or not at all.

    Parameters
    ----------
    folder
        The version's.
    replaced_sha256
        The journal that must still be there, empty for none; by default that does not matter.

    Raises
    ------
    DeviceError
        If the device refuses, or another journal is there.
    """
    data = journal_bytes(records)
    run_script(
        transport,
        _WRITE,
        folder,
        EDITS,
        JOURNAL_NAME,
        replaced_sha256,
        hashlib.sha256(data).hexdigest() if data else "",
        doing="write the journal on the device",
        stdin=data,
    )
