"""Bring a bundle to the device: staged, verified there, then one rename; the former version stays."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mobiedit.runtime.bundle_layout import EDITS
from mobiedit.runtime.errors import BundleError, MobiEditError
from mobiedit.runtime.files import read_regular
from mobiedit.runtime.journal import JOURNAL_NAME, journal_bytes
from mobiedit.runtime.journal_records import Record
from mobiedit.runtime.journal_state import in_force, read_journal
from mobiedit.runtime.manifest import FileEntry, Manifest, read_manifest, verify_files
from mobiedit.runtime.manifest_fields import MANIFEST_NAME

from .carried_edits import device_records, erase_forgotten, merged_records, write_journal
from .flip import Flip, flip
from .layout import BundlePlace, is_of_manifest, new_version, version_of_staging
from .lock import device_lock
from .shell import run_script
from .staged_files import StagingReport, bring_files, is_intact
from .transport import Transport
from .versions import Version, read_versions, survey

_PREPARE = r"""no_links "$@"; mkdir -p "$1" || exit 1; shift
for folder in "$@"; do [ -d "$folder" ] || mkdir "$folder" || exit 1; done"""
_STAGED = r"""cd "$1" || exit 1
for folder in .staging-*; do if [ -d "$folder" ] && [ ! -L "$folder" ]; then printf '%s\000' "$folder"; fi; done"""
_STAGE = r"""staging=$1; shift
for old in "$@"; do rm -rf "$old" || exit 1; done
no_links "$staging"; [ -d "$staging" ] || mkdir "$staging" """


@dataclass(frozen=True)
class PushConfig:
    """How a bundle is pushed.

    Attributes
    ----------
    drop_edits
        Leave edits behind that are of another base than the bundle; they stay with the former version.
    break_lock
        Take the device's lock whoever holds it.
    """

    drop_edits: bool = False
    break_lock: bool = False


@dataclass(frozen=True)
class PushResult:
    """What a push did.

    Attributes
    ----------
    bundle, version, path
        The bundle's name, its version that is current now, and its folder.
    previous
        The version that `rollback` would bring back.
    up_to_date
        Whether the device had the bundle already.
    files
        How they came together.
    edits
        Edits in force on the device now.
    """

    bundle: str
    version: str
    path: str
    previous: str | None
    up_to_date: bool
    files: StagingReport
    edits: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class _Local:
    """A bundle of this host, every file of which has its hash."""

    folder: Path
    manifest: Manifest
    manifest_sha256: str
    files: dict[str, FileEntry]
    records: tuple[Record, ...]


def push_bundle(
    transport: Transport,
    place: BundlePlace,
    bundle: Path,
    config: PushConfig | None = None,
    report: Callable[[str, int], None] = lambda name, size: None,
) -> PushResult:
    """Make a bundle of this host the current version on the device, with the edits of both.

    Parameters
    ----------
    bundle
        Its folder.
    report
        Called with the name and size of each file that was sent.

    Raises
    ------
    BundleError
        If the bundle is not whole; nothing is sent.
    DeviceError
        If the device refuses; the version that was current still is.
    JournalError
        If the edits of both do not go together.
    TransportError
        If the connection fails. The next push goes on from there.
    """
    config = config or PushConfig()
    local = _read_local(bundle)
    layout = place.layout
    folders = (layout.root, layout.bundles, place.folder, place.versions)
    run_script(transport, _PREPARE, *folders, doing=f"make {place.folder} on the device")
    with device_lock(transport, layout, f"push {place.name}", break_lock=config.break_lock):
        found = survey(transport, place)
        versions = read_versions(transport, place, found)
        on_device = device_records(versions, local.manifest.edit_base, drop_edits=config.drop_edits)
        records = merged_records(on_device, local.records, local.manifest.slots)
        current = versions[0] if versions else None
        if current and _is_same(transport, current, local):
            if not current.journal.startswith(journal_bytes(records)):
                write_journal(transport, current.path, records, current.journal_sha256)
            erase_forgotten(transport, versions[1:], records)
            nothing = StagingReport(0, 0, len(local.files))
            return _result(place, current.name, found.previous, nothing, records, up_to_date=True)
        version, staging = _stage(transport, place, local, found.versions)
        files = bring_files(transport, staging, bundle, local.files, versions, report)
        write_journal(transport, staging, records)  # even an empty one: a push that was cut may have left another
        flip(transport, place, Flip(version, current, staging, tuple(set(found.versions) - {found.current})))
        erase_forgotten(transport, versions[:1], records)
        return _result(place, version, found.current, files, records, up_to_date=False)


def _read_local(bundle: Path) -> _Local:
    if not bundle.is_dir():
        raise BundleError(f"{bundle} is not a folder: give the bundle that mobiedit-export wrote")
    if (bundle / EDITS).is_symlink():
        raise BundleError(f"{bundle / EDITS} is a link: put the folder itself there")
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest, hashes=True)
    text = read_regular(bundle / MANIFEST_NAME) or b""
    digest = hashlib.sha256(text).hexdigest()
    journal = read_journal(bundle / EDITS / JOURNAL_NAME, manifest.edit_base)
    files = {**manifest.files, MANIFEST_NAME: FileEntry(digest, len(text))}
    return _Local(bundle, manifest, digest, files, journal.records)


def _is_same(transport: Transport, current: Version, local: _Local) -> bool:
    """Tell whether the device has this very bundle, unharmed, with a journal that can be read."""
    if current.manifest_sha256 != local.manifest_sha256:
        return False
    with suppress(MobiEditError):
        current.edits()
        return is_intact(transport, current.path, local.files)
    return False


def _stage(transport: Transport, place: BundlePlace, local: _Local, versions: tuple[str, ...]) -> tuple[str, str]:
    """Return the new version's name and the folder that it is put together in: a new one, or one that a cut push left.

    Only one push is resumed; what others left is cleared, since it may fill the disk.
    """
    layout = place.layout
    said = run_script(transport, _STAGED, layout.root, doing=f"look at {layout.root}")
    names = said.decode("utf-8", "surrogateescape").split("\0")[:-1]
    staged = sorted(filter(None, map(version_of_staging, names)))
    version = new_version(local.manifest_sha256, versions)
    resumed = [each for each in staged if is_of_manifest(each, local.manifest_sha256)][-1:]
    if resumed and resumed[0] > max(versions, default=""):
        version = resumed[0]
    others = [layout.staging(each) for each in staged if each != version]
    run_script(transport, _STAGE, layout.staging(version), *others, doing=f"stage the push in {layout.root}")
    return version, layout.staging(version)


def _result(
    place: BundlePlace,
    version: str,
    previous: str | None,
    files: StagingReport,
    records: tuple[Record, ...],
    *,
    up_to_date: bool,
) -> PushResult:
    edits = len(in_force(records))
    return PushResult(place.name, version, place.version(version), previous, up_to_date, files, edits)
