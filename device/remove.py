"""Remove from the device what was pushed: a bundle, the runner, or what pushes that were cut have left."""

from __future__ import annotations

from .layout import BundlePlace, Layout
from .lock import device_lock
from .shell import run_script
from .transport import Transport

# Moved aside first: a connection that is cut must not leave half a bundle.
_REMOVE = r"""no_links "$1" "$2" "$3"
[ -d "$3" ] || refuse "there is no $3 on the device: see mobiedit-device list"
rm -rf "$1/.removed" && mv -T "$3" "$1/.removed" && rm -rf "$1/.removed" """
_ROOT = (
    r"""no_links "$1"; [ -d "$1" ] || refuse "there is no $1 on the device: nothing was pushed below that --root" """
)
_STAGED = r"""no_links "$1"; cd "$1" || exit 1
for folder in .staging-* .removed .lock-*; do
  if [ -d "$folder" ] || [ -L "$folder" ]; then rm -rf "./$folder" && printf '%s\000' "$folder" || exit 1; fi
done"""
_TIMEOUT = 600.0


def remove_bundle(transport: Transport, place: BundlePlace, *, break_lock: bool = False) -> str:
    """Remove a bundle with all its versions and edits, and return its path.

    Raises
    ------
    DeviceError
        If it is not there, or it or a folder above it is a link.
    """
    return _remove(transport, place.layout, place.layout.bundles, place.folder, break_lock)


def remove_runner(transport: Transport, layout: Layout, *, break_lock: bool = False) -> str:
    """Remove the runner, and return its path; DeviceError as `remove_bundle`."""
    return _remove(transport, layout, layout.root, layout.runner, break_lock)


def remove_staged(transport: Transport, layout: Layout, *, break_lock: bool = False) -> tuple[str, ...]:
    """Remove what pushes that were cut have left, and return the folders' names."""
    run_script(transport, _ROOT, layout.root, doing=f"look at {layout.root}")
    with device_lock(transport, layout, "remove staged pushes", break_lock=break_lock):
        said = run_script(transport, _STAGED, layout.root, doing="remove staged pushes", timeout=_TIMEOUT)
    return tuple(said.decode("utf-8", "surrogateescape").split("\0")[:-1])


def _remove(transport: Transport, layout: Layout, parent: str, path: str, break_lock: bool) -> str:
    run_script(transport, _ROOT, layout.root, doing=f"look at {layout.root}")
    with device_lock(transport, layout, f"remove {path}", break_lock=break_lock):
        run_script(transport, _REMOVE, layout.root, parent, path, doing=f"remove {path}", timeout=_TIMEOUT)
    return path
