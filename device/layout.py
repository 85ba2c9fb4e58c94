"""The names below the root on the device: bundles with their versions, the runner, what is being pushed, the lock."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from .paths import check_root, child

_TIME = "%Y%m%dT%H%M%SZ"
_VERSION_ID = re.compile(r"(\d{8}T\d{6}Z)-([0-9a-f]{8})")
_STAGING = ".staging-"


@dataclass(frozen=True)
class Layout:
    """Everything below one root.

    Attributes
    ----------
    root
        An allowed root; `layout_at` checks it.
    """

    root: str

    @property
    def lock(self) -> str:
        """The folder whose making is the right to change what is below the root."""
        return child(self.root, ".lock")

    @property
    def bundles(self) -> str:
        """The folder of the bundles."""
        return child(self.root, "bundles")

    @property
    def runner(self) -> str:
        """The folder of the runner's versions."""
        return child(self.root, "runner")

    @property
    def runner_python(self) -> str:
        """The Python that has the runner."""
        return child(self.runner, "current", "bin", "python")

    def staging(self, version: str) -> str:
        """Return the folder in which a version is put together."""
        return child(self.root, _STAGING + version)

    def bundle(self, name: str) -> BundlePlace:
        """Return the place of a bundle.

        Raises
        ------
        RequestError
            If the name cannot be one on the device.
        """
        return BundlePlace(self, name, child(self.bundles, name))


@dataclass(frozen=True)
class BundlePlace:
    """Where a bundle of one name is: `versions/` and `current`, a link to one of them."""

    layout: Layout
    name: str
    folder: str

    @property
    def versions(self) -> str:
        """The folder of its versions."""
        return child(self.folder, "versions")

    def version(self, version: str) -> str:
        """Return the folder of a version, which is a bundle."""
        return child(self.versions, version)


def layout_at(root: str) -> Layout:
    """Return the layout below a root.

    Raises
    ------
    RequestError
        If the root is not an allowed one.
    """
    return Layout(check_root(root))


def bundle_name(bundle: Path) -> str:
    """Return what a local bundle is called on the device: as its folder."""
    return bundle.absolute().name if bundle.name not in ("", "..") else bundle.resolve().name


def is_version(name: str) -> bool:
    """Tell whether a name is a version's."""
    return _time_of(name) is not None


def version_of_staging(name: str) -> str | None:
    """Return the version that is put together in a folder of this name, or None if it is not such a folder."""
    version = name.removeprefix(_STAGING)
    return version if version != name and is_version(version) else None


def is_of_manifest(version: str, manifest_sha256: str) -> bool:
    """Tell whether a version's name is that of a manifest."""
    return version.endswith("-" + manifest_sha256[:8])


def new_version(manifest_sha256: str, existing: Iterable[str], now: datetime | None = None) -> str:
    """Return the name of a new version: UTC time and 8 digits of the manifest's hash.

    It sorts behind those that exist, even where they were named by a clock that is ahead.
    """
    latest = [time + timedelta(seconds=1) for time in map(_time_of, existing) if time]
    time = max([(now or datetime.now(UTC)).astimezone(UTC).replace(microsecond=0), *latest])
    return f"{time.strftime(_TIME)}-{manifest_sha256[:8]}"


def _time_of(version: str) -> datetime | None:
    if (match := _VERSION_ID.fullmatch(version)) is not None:
        with suppress(ValueError):
            return datetime.strptime(match[1], _TIME).replace(tzinfo=UTC)
    return None
