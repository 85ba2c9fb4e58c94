"""What is on the device already: the versions of a bundle, which of them is current, and their journals."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from mobiedit.runtime.bundle_layout import EDITS
from mobiedit.runtime.errors import BundleError
from mobiedit.runtime.journal import JOURNAL_NAME
from mobiedit.runtime.journal_state import JournalState, parse_journal
from mobiedit.runtime.manifest import Manifest, parse_manifest
from mobiedit.runtime.manifest_fields import MANIFEST_NAME

from .errors import DeviceError
from .layout import BundlePlace, is_version
from .paths import child
from .shell import run_script
from .transport import Transport

_SURVEY = r"""no_links "$1" "$1/bundles" "$2" "$2/versions"
printf '%s\000' "$(readlink "$2/current")"
for version in "$2"/versions/*; do
  if [ -d "$version" ] && [ ! -L "$version" ]; then printf '%s\000' "${version##*/}"; fi
done"""
_READ = r"""no_links "$1" "$1/$2" "$1/$3" "$1/$3/$4"
if [ -f "$1/$2" ]; then cat "$1/$2" || exit 1; fi
printf '\000'
if [ -f "$1/$3/$4" ]; then cat "$1/$3/$4" || exit 1; fi"""


@dataclass(frozen=True)
class Version:
    """A version of a bundle on the device.

    Attributes
    ----------
    name
        Its folder's name below ``versions/``.
    manifest
        What it states about itself; None where that is damaged.
    manifest_sha256
        Of the manifest's file as it is there.
    journal
        The bytes of its journal; none where there are no edits.
    path
        Its folder.
    """

    name: str
    manifest: Manifest | None
    manifest_sha256: str
    journal: bytes
    path: str

    @property
    def journal_sha256(self) -> str:
        """Of its journal; empty where there is none."""
        return hashlib.sha256(self.journal).hexdigest() if self.journal else ""

    def edits(self, base_sha256: str | None = None) -> JournalState:
        """Read its journal.

        Parameters
        ----------
        base_sha256
            What its edits belong to; what its manifest says when left out.

        Raises
        ------
        JournalError
            If the journal is damaged, or of another base.
        DeviceError
            If its manifest would have to say the base and is damaged.
        """
        base = base_sha256 or (self.manifest.edit_base if self.manifest else None)
        if base is None:
            raise DeviceError(f"{self.path}/{MANIFEST_NAME} on the device is damaged: push the bundle again")
        return parse_journal(self.journal, f"the device's {self.path}/{EDITS}/{JOURNAL_NAME}", base)


@dataclass(frozen=True)
class Survey:
    """The versions of a bundle, oldest first, and the name of the current one."""

    versions: tuple[str, ...]
    current: str | None

    @property
    def previous(self) -> str | None:
        """The version that a rollback makes current: the newest of the others."""
        others = [version for version in self.versions if version != self.current]
        return others[-1] if others and self.current else None


def survey(transport: Transport, place: BundlePlace) -> Survey:
    """Return which versions of a bundle the device has; none if it does not have the bundle.

    Raises
    ------
    DeviceError
        If the root or a folder below it is a link, or ``current`` is not one to a version.
    """
    said = run_script(transport, _SURVEY, place.layout.root, place.folder, doing=f"look at {place.folder}")
    link, *names = said.decode("utf-8", "surrogateescape").split("\0")[:-1]
    versions = tuple(sorted(filter(is_version, names)))
    if not link:
        return Survey(versions, None)
    current = link.removeprefix("versions/")
    if current == link or current not in versions:
        raise DeviceError(
            f"{place.folder}/current on the device leads to {link!r}, which is no version of the bundle: remove the "
            "bundle there (mobiedit-device remove) and push it again"
        )
    return Survey(versions, current)


def read_version(transport: Transport, place: BundlePlace, name: str) -> Version:
    """Read the manifest and the journal of a version.

    Raises
    ------
    DeviceError
        If one of them is a link or cannot be read.
    """
    path = place.version(name)
    said = run_script(transport, _READ, path, MANIFEST_NAME, EDITS, JOURNAL_NAME, doing=f"read {path}")
    text, _, journal = said.partition(b"\0")
    try:
        manifest = parse_manifest(text.decode())
    except (BundleError, UnicodeDecodeError):
        manifest = None
    return Version(name, manifest, hashlib.sha256(text).hexdigest(), journal, path)


def read_versions(transport: Transport, place: BundlePlace, found: Survey) -> tuple[Version, ...]:
    """Read the current version and the previous one, those that there are, in this order."""
    return tuple(read_version(transport, place, name) for name in (found.current, found.previous) if name)


def require_current(found: Survey, place: BundlePlace) -> str:
    """Return the current version's name.

    Raises
    ------
    DeviceError
        If the device does not have the bundle.
    """
    if found.current is None:
        raise DeviceError(
            f"the device has no bundle {place.name!r} below {place.layout.root}: push it first, or see "
            "`mobiedit-device list` for its name, or give the --root that it was pushed to"
        )
    return found.current


def current_path(transport: Transport, place: BundlePlace) -> str:
    """Return the folder of the current version."""
    return child(place.versions, require_current(survey(transport, place), place))
