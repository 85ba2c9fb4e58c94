"""One host at a time changes what is below the root: a folder that only one can make.

A cut connection leaves it behind. So its owner also holds a lock of the host's system, which ends with its process: the
same host sees by that whether the owner still lives, and takes a dead one's place.
"""

from __future__ import annotations

import getpass
import json
import platform
import secrets
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from mobiedit.runtime.errors import BusyError
from mobiedit.runtime.lock import editing_lock

from .errors import DeviceError, TransportError
from .layout import Layout
from .shell import run_script
from .transport import Transport

# What the owner says of itself comes on standard input: unlike printf, cat says why where the disk is full. It is
# whole, or the lock is not taken: the folder gets its name with the owner in it, by a rename that replaces no full one.
_OWN = r"""own() {
  rm -rf "$1-$2"; mkdir "$1-$2" || exit 1
  cat >"$1-$2/owner" || { rm -rf "$1-$2"; exit 1; }
  case "$(cat "$1-$2/owner")" in *\}) ;; *) rm -rf "$1-$2"; exit 1 ;; esac
  if mv -T "$1-$2" "$1" 2>/dev/null; then rm -rf "$1"-*; exit 0; fi
  [ -d "$1" ] || mv -T "$1-$2" "$1"
  rm -rf "$1-$2"
}
"""
_TAKE = r"""no_links "$1"
own "$1" "$2"
[ -d "$1" ] || exit 1
printf '\000'; cat "$1/owner" 2>/dev/null; exit 0"""
_TAKE_OVER = r"""[ "$(cat "$1/owner" 2>/dev/null)" = "$2" ] || refuse "another push began just now: wait for it to end"
mv -T "$1" "$1-$3-old" && rm -rf "$1-$3-old" && own "$1" "$3"
refuse "another push began just now: wait for it to end" """
_RELEASE = r"""[ "$(cat "$1/owner" 2>/dev/null)" != "$2" ] || rm -rf "$1" """


@dataclass(frozen=True)
class _Owner:
    host: str
    token: str
    since: str
    doing: str


@contextmanager
def device_lock(transport: Transport, layout: Layout, doing: str, *, break_lock: bool = False) -> Iterator[None]:
    """Hold the right to change what is below the root, which must exist.

    Parameters
    ----------
    doing
        What for, as another host's user will read it: ``"push a.bundle"``.
    break_lock
        Take the lock whoever holds it.

    Raises
    ------
    DeviceError
        If another host holds it, or another process of this one.
    TransportError
        If the connection fails; where it fails at the end, the lock stays and the next call takes it over.
    """
    token = secrets.token_hex(8)
    own = json.dumps(asdict(_Owner(_this_host(), token, datetime.now(UTC).isoformat(timespec="seconds"), doing)))
    place = _place(token)
    try:
        with editing_lock(place):
            _take(transport, layout.lock, own, token, break_lock)
            try:
                yield
            finally:
                with suppress(TransportError):
                    run_script(transport, _RELEASE, layout.lock, own, doing="release the lock")
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _take(transport: Transport, lock: str, own: str, token: str, break_lock: bool) -> None:
    said = run_script(transport, _OWN + _TAKE, lock, token, doing="take the lock on the device", stdin=own.encode())
    if not said:
        return
    found = said[1:].replace(b"\0", b"").decode("utf-8", "surrogateescape").rstrip("\n")  # as the shell's $( ) has it
    owner = _parse(found)
    if not break_lock and not _is_dead(owner):
        raise DeviceError(
            f"the device is locked: {owner.host} does {owner.doing!r} since {owner.since} (by its clock); wait for it "
            "to end; if it was cut and will not come back, take the lock with --break-lock"
        )
    doing = "take over the lock on the device"
    run_script(transport, _OWN + _TAKE_OVER, lock, found, token, doing=doing, stdin=own.encode())


def _parse(text: str) -> _Owner:
    with suppress(ValueError, TypeError):
        owner = _Owner(**json.loads(text))
        if all(isinstance(value, str) for value in vars(owner).values()):
            return owner
    return _Owner("someone", "", "an unknown time", "something unknown")


def _is_dead(owner: _Owner) -> bool:
    """Tell whether the owner was a process of this host and user that ended."""
    if owner.host != _this_host() or not owner.token.isalnum():
        return False
    place = _place(owner.token)
    try:
        with editing_lock(place):
            return True
    except BusyError:
        return False
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _place(token: str) -> Path:
    return Path(tempfile.gettempdir()) / f"mobiedit-device-{token}"


def _this_host() -> str:
    return f"{getpass.getuser()}@{platform.node()} ({uuid.getnode():012x})"
