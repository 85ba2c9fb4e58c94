"""Make a version current: the one step of a push or a rollback that others see."""

from __future__ import annotations

from dataclasses import dataclass

from mobiedit.runtime.bundle_layout import EDITS
from mobiedit.runtime.journal import JOURNAL_NAME

from .layout import BundlePlace
from .shell import run_script
from .transport import Transport
from .versions import Version

# All of it in one script, so that no connection can be cut in between. `sync` before the rename: a power cut must not
# leave the name of a version whose files never reached the disk.
_FLIP = r"""folder=$1 version=$2 staging=$3 former=$4 journal=$5 sum=$6; shift 6
[ "$(readlink "$folder/current")" = "${former:+versions/$former}" ] ||
  refuse "another version became current meanwhile: try again"
[ -z "$former" ] || [ "$(digest "$folder/versions/$former/$journal")" = "$sum" ] ||
  refuse "an edit was made on the device meanwhile: try again, and it will come along"
sync
[ -z "$staging" ] || mv -T "$staging" "$folder/versions/$version" || exit 1
rm -rf "$folder/.current" && ln -s "versions/$version" "$folder/.current" &&
  mv -T "$folder/.current" "$folder/current" || exit 1
sync
for old in "$@"; do rm -rf "$folder/versions/$old"; done"""

_SYNC_TIMEOUT = 900.0
"""Seconds; a slow disk may have gigabytes to write."""


@dataclass(frozen=True)
class Flip:
    """What becomes current.

    Attributes
    ----------
    version
        Its name.
    former
        What is current now, as it was read; None where nothing is.
    staging
        The folder that becomes the version; empty where it is in place.
    removed
        Versions that are too old to be kept.
    """

    version: str
    former: Version | None
    staging: str = ""
    removed: tuple[str, ...] = ()


def flip(transport: Transport, place: BundlePlace, change: Flip) -> None:
    """Make a version current.

    Raises
    ------
    DeviceError
        If another one became current, or an edit was committed, since the former one was read; or the disk refuses.
        The former one stays current.
    """
    former = change.former
    run_script(
        transport,
        _FLIP,
        place.folder,
        change.version,
        change.staging,
        former.name if former else "",
        f"{EDITS}/{JOURNAL_NAME}",
        former.journal_sha256 if former else "",
        *change.removed,
        doing=f"make {change.version} current",
        timeout=_SYNC_TIMEOUT,
    )
