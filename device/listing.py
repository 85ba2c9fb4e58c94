"""What is on the device: bundles, their versions, sizes and edits, and the runner."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mobiedit.runtime.errors import MobiEditError, RequestError

from .errors import DeviceError, TransportError
from .layout import BundlePlace, Layout
from .shell import run_script
from .transport import Transport
from .versions import read_version, survey

_NAMES = r"""no_links "$1" "$1/bundles" "$1/runner"
printf '%s\000' "$(readlink "$1/runner/current")"
for bundle in "$1"/bundles/*; do if [ -d "$bundle" ]; then printf '%s\000' "${bundle##*/}"; fi; done
for bundle in "$1"/bundles/.[!.]*; do if [ -d "$bundle" ]; then printf '%s\000' "${bundle##*/}"; fi; done"""


@dataclass(frozen=True)
class ListedVersion:
    """A version of a bundle.

    Attributes
    ----------
    version
        Its name.
    current
        Whether it is the one that runs.
    model, precision
        What its manifest says; None where that is damaged.
    bytes
        Of its files; None as above.
    edits
        Edits in force; None where the journal is damaged.
    """

    version: str
    current: bool
    model: str | None
    precision: str | None
    bytes: int | None
    edits: int | None


@dataclass(frozen=True)
class ListedBundle:
    """A bundle; ``fault`` says what is wrong with it, where something is."""

    name: str
    versions: tuple[ListedVersion, ...]
    fault: str | None = None


@dataclass(frozen=True)
class Listing:
    """All that is below a root; ``runner`` is its current version's name."""

    root: str
    runner: str | None
    bundles: tuple[ListedBundle, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def list_device(transport: Transport, layout: Layout) -> Listing:
    """Return what is below the root; nothing where there is no root.

    Raises
    ------
    DeviceError
        If the root or a folder below it is a link.
    """
    said = run_script(transport, _NAMES, layout.root, doing=f"look at {layout.root}")
    runner, *names = said.decode("utf-8", "surrogateescape").split("\0")[:-1]
    bundles = tuple(_listed(transport, layout, name) for name in sorted(names))
    return Listing(layout.root, runner.rpartition("/")[2] or None, bundles)


def _listed(transport: Transport, layout: Layout, name: str) -> ListedBundle:
    try:
        place = layout.bundle(name)
        found = survey(transport, place)
    except TransportError:
        raise
    except (DeviceError, RequestError) as error:
        return ListedBundle(name, (), str(error))
    versions = (_version(transport, place, each, current=each == found.current) for each in found.versions)
    return ListedBundle(name, tuple(versions), None if found.current else "no version is current: push it again")


def _version(transport: Transport, place: BundlePlace, name: str, *, current: bool) -> ListedVersion:
    version = read_version(transport, place, name)
    manifest = version.manifest
    try:
        edits = len(version.edits().edits)
    except MobiEditError:
        edits = None
    if manifest is None:
        return ListedVersion(name, current, None, None, None, edits)
    size = sum(entry.size for entry in manifest.files.values())
    return ListedVersion(name, current, manifest.base.name, manifest.precision, size, edits)
