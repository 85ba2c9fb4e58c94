"""The files of a version that is put together on the device: taken from versions that are there, sent, verified."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mobiedit.runtime.bundle_layout import EDITS
from mobiedit.runtime.manifest import FileEntry
from mobiedit.runtime.manifest_fields import MANIFEST_NAME

from .errors import DeviceError
from .paths import child
from .shell import run_script
from .space import require_space
from .transport import Transport
from .versions import Version

_HASHES = r"""cd "$1" || exit 1
for file in * .[!.]* ..?*; do
  if [ -L "$file" ] || [ ! -f "$file" ]; then sum=-; else sum=$(digest "$file"); fi
  if [ -e "$file" ] || [ -L "$file" ]; then printf '%s %s\000' "$sum" "$file"; fi
done"""
# Android has no hard links for its shell's user: then the file is copied.
_TAKE = r"""cd "$1" || exit 1
while read -r version from name; do
  source=$2/$version/$from
  if [ -e "$name" ] || [ -L "$source" ] || [ ! -f "$source" ]; then continue; fi
  ln "$source" "$name" 2>/dev/null || cat "$source" >"$name" || exit 1
done"""
_REMOVE = r"""cd "$1" || exit 1; shift; for name in "$@"; do rm -rf "./$name" || exit 1; done"""

_EMPTY = hashlib.sha256().hexdigest()
_SLOWEST_HASHING = 10 * 2**20
"""Bytes a second; below that a device is taken for hung."""
_ATTEMPTS = 2
"""How often a file is sent that arrives damaged."""


@dataclass(frozen=True)
class StagingReport:
    """What it took to bring the files together.

    Attributes
    ----------
    sent_files, sent_bytes
        What went over the connection.
    taken_files
        Those that were on the device already: in another version, or from a push that was cut.
    """

    sent_files: int
    sent_bytes: int
    taken_files: int


def hashing_timeout(size: int) -> float:
    """Return how long the device may take to hash so many bytes, in seconds."""
    return 60.0 + size / _SLOWEST_HASHING


def file_hashes(transport: Transport, folder: str, size: int) -> dict[str, str]:
    """Return the SHA-256 of each file in a folder on the device; ``-`` for what is no regular file.

    Parameters
    ----------
    size
        About how many bytes that is.
    """
    said = run_script(transport, _HASHES, folder, doing=f"hash {folder}", timeout=hashing_timeout(size))
    pairs = (entry.partition(" ") for entry in said.decode("utf-8", "surrogateescape").split("\0")[:-1])
    return {name: digest or _EMPTY for digest, _, name in pairs}


def is_intact(transport: Transport, folder: str, wanted: Mapping[str, FileEntry]) -> bool:
    """Tell whether a version on the device has exactly the files that it should have."""
    found = file_hashes(transport, folder, sum(entry.size for entry in wanted.values()))
    return all(found.get(name) == entry.sha256 for name, entry in wanted.items())


def bring_files(
    transport: Transport,
    folder: str,
    source: Path,
    wanted: Mapping[str, FileEntry],
    versions: Sequence[Version],
    report: Callable[[str, int], None],
) -> StagingReport:
    """Fill a folder on the device with the files of a bundle, and verify each of them there.

    Parameters
    ----------
    folder
        A folder that exists; what is in it already counts if its hash is right, and goes otherwise.
    source
        The local bundle.
    wanted
        Its files.
    versions
        What is on the device, the current one first; files of the same hash are taken from there.
    report
        Called with the name and size of each file that was sent.

    Raises
    ------
    DeviceError
        If the disk is full, or a file arrives damaged again.
    TransportError
        If the connection fails; the next call goes on from there.
    """
    _take_files(transport, folder, wanted, versions)
    right = _verified(transport, folder, wanted, sum(entry.size for entry in wanted.values()))
    taken = len(right)
    sent_files = sent_bytes = 0
    for _ in range(_ATTEMPTS):
        missing = {name: entry for name, entry in wanted.items() if name not in right}
        if not missing:
            return StagingReport(sent_files, sent_bytes, taken)
        _send(transport, folder, source, missing, report)
        sent_files += len(missing)
        sent_bytes += sum(entry.size for entry in missing.values())
        right = _verified(transport, folder, wanted, sum(entry.size for entry in wanted.values()))
    damaged = ", ".join(name for name in wanted if name not in right)
    if not damaged:
        return StagingReport(sent_files, sent_bytes, taken)
    raise DeviceError(
        f"{damaged} arrived with another SHA-256, {_ATTEMPTS} times: check the cable and the device's disk, leave the "
        "bundle alone meanwhile, and push again; the current version is as it was"
    )


def _take_files(
    transport: Transport, folder: str, wanted: Mapping[str, FileEntry], versions: Sequence[Version]
) -> None:
    """Take from versions on the device what their manifests promise; whether they keep it is seen afterwards."""
    there = {
        sha256: (version, name)
        for version in reversed(versions)  # the current one has the last word
        if version.manifest
        for name, sha256 in [
            *((name, entry.sha256) for name, entry in version.manifest.files.items()),
            (MANIFEST_NAME, version.manifest_sha256),
        ]
    }
    found = [(*there[entry.sha256], name) for name, entry in wanted.items() if entry.sha256 in there]
    if not found:
        return
    lines = "".join(f"{version.name} {former} {name}\n" for version, former, name in found)
    run_script(
        transport,
        _TAKE,
        folder,
        found[0][0].path.rpartition("/")[0],
        doing="copy files of the version that is there",
        stdin=lines.encode(),
        timeout=hashing_timeout(sum(wanted[name].size for _, _, name in found)),
    )


def _verified(transport: Transport, folder: str, wanted: Mapping[str, FileEntry], size: int) -> set[str]:
    """Return the files that are right, and remove everything else but the edits."""
    found = file_hashes(transport, folder, size)
    right = {name for name, entry in wanted.items() if found.get(name) == entry.sha256}
    if wrong := sorted(found.keys() - right - {EDITS}):
        run_script(transport, _REMOVE, folder, *wrong, doing=f"clear {folder}")
    return right


def _send(
    transport: Transport,
    folder: str,
    source: Path,
    missing: Mapping[str, FileEntry],
    report: Callable[[str, int], None],
) -> None:
    left = sum(entry.size for entry in missing.values())
    require_space(transport, folder, left)
    for name, entry in missing.items():
        try:
            transport.push(source / name, child(folder, name))
        except DeviceError:
            # Whatever the connection made of it: a full disk is the likeliest cause and the one with a remedy.
            require_space(transport, folder, left)
            raise
        left -= entry.size
        report(name, entry.size)
