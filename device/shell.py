"""Small scripts for the device's shell, and what their refusals mean.

A script is a constant; what it works on comes as its parameters, so that no name is ever part of its text. It uses what
both toybox and coreutils have.
"""

from __future__ import annotations

from .errors import DeviceError
from .transport import Transport

REFUSED = 10
"""Exit code of a script that says itself, in one line, what is wrong and what helps."""

_PRELUDE = r"""LC_ALL=C; export LC_ALL; umask 077
refuse() { printf '%s\n' "$1" >&2; exit 10; }
no_links() { for path in "$@"; do [ ! -L "$path" ] ||
  refuse "$path on the device is a link: give the folder itself as --root, or remove the link"; done; }
digest() { [ -s "$1" ] || return 0; set -- $(sha256sum <"$1"); printf %s "$1"; }
"""

_MEANINGS = {
    "No space left": "the device's disk is full: free some space there (mobiedit-device remove) and try again",
    "Disk quota": "the disk quota on the device is used up: free some space there and try again",
    "Read-only file system": "that place on the device is read-only: give another --root",
    "Permission denied": "permission denied on the device: give a --root that its user may write",
    "Operation not permitted": "not permitted on the device: give a --root that its user may write",
}


def run_script(
    transport: Transport, script: str, *parameters: str, doing: str, stdin: bytes = b"", timeout: float = 60.0
) -> bytes:
    """Run a script on the device and return what it printed.

    Parameters
    ----------
    script
        For a POSIX shell. It may call ``refuse TEXT``; ``no_links PATH...``, which refuses those that are links; and
        ``digest FILE``, which prints a file's SHA-256, or nothing where there is no file or an
        empty one.
    parameters
        Its ``$1``, ``$2``, ...
    doing
        The action, as it follows "cannot" in the message.

    Raises
    ------
    DeviceError
        If its exit code is not 0.
    TransportError
        If the connection fails.
    """
    done = transport.run(["sh", "-c", _PRELUDE + script, "sh", *parameters], stdin=stdin, timeout=timeout)
    if done.code == 0:
        return done.out
    said = done.err.decode("utf-8", "replace").strip()
    if done.code == REFUSED:
        raise DeviceError(said)
    raise DeviceError(f"cannot {doing}: {meaning(said, done.code)}")


def meaning(said: str, code: int) -> str:
    """Return what a program's complaint means and what helps."""
    for text, remedy in _MEANINGS.items():
        if text.lower() in said.lower():
            return remedy
    last = said.splitlines()[-1] if said else "no message"
    if code == 127:
        return f"a program is missing on the device ({last}): install coreutils or toybox there"
    return f"exit code {code} on the device ({last}): run mobiedit-device doctor to see what it lacks"
