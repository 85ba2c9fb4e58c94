"""The runner on a device: wheels that are pushed, unpacked there and tried, before it becomes the current one.

Below the root: ``runner/versions/<id>/`` with ``bin/python``, ``lib`` and ``wheels``, and the link ``runner/current``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from . import unpack_wheels
from .errors import DeviceError
from .layout import new_version
from .paths import check_root, child, refuse_links
from .transport import Completed, Transport
from .wheels import MANIFEST, Wheels

_UNPACK_SECONDS = 1800.0
_TRY = (
    "import json, platform, numpy, onnxruntime, tokenizers, mobiedit.runtime, mobiedit.runtime.cli; "
    "from importlib.metadata import distributions; "
    "versions = {each.metadata['Name']: each.version for each in distributions()}; "
    "print(json.dumps({'python': platform.python_version(), **versions}))"
)


@dataclass(frozen=True)
class Runner:
    """A runner that was tried on the device.

    Attributes
    ----------
    version_id
        UTC time and the first eight digits of its manifest's SHA-256.
    python
        Its interpreter on the device.
    versions
        What it has, as the device itself states: Python and every package.
    """

    version_id: str
    python: str
    versions: dict[str, str]


def runner_python(root: str) -> str:
    """Return the path of the current runner's interpreter: ``-m mobiedit.runtime.cli`` starts the runner."""
    return f"{child(root, 'runner', 'current')}/bin/python"


def push_runner(transport: Transport, root: str, wheels: Wheels, python: str = "python3") -> Runner:
    """Install a runner on the device, without network, and make it the current one; the one before is kept.

    Wheels that the device has already, from a push that was cut or in the current runner, are not sent again. Until the
    new runner has answered, the current one stays.

    Parameters
    ----------
    root
        The allowed root on the device.
    wheels
        From `fetch_wheels` or `read_wheels`.
    python
        The device's Python that the environment is made of: a name or a path.

    Raises
    ------
    DeviceError
        When the device has no Python, another one than the wheels are for, no space, or the runner does not answer.
    TransportError
        When the connection fails; the next push goes on where this one ended.
    """
    refuse_links(transport, check_root(root))
    if transport.run([python, "-I", "-c", "pass"]).code:
        raise DeviceError(f"the device has no {python}: install it there (apt install python3), or name another")
    digest = hashlib.sha256(wheels.manifest_bytes).hexdigest()
    if (same := _current(transport, root)) and same.version_id.endswith(digest[:8]):
        return same
    staged, versions = child(root, f".staging-runner-{digest[:8]}"), child(root, "runner", "versions")
    _must(transport, ["mkdir", "-p", f"{staged}/wheels", versions], "make a folder")
    _send(transport, root, staged, wheels)
    installed = transport.run(
        [python, "-I", "-", digest, staged], stdin=_script(), timeout=_UNPACK_SECONDS
    )  # the script checks every hash on the device
    if installed.code:
        raise DeviceError(_reason("the runner cannot be installed", installed))
    found = _try(transport, staged)
    version_id = new_version(digest, _versions(transport, root))
    _must(transport, ["mv", "-T", staged, f"{versions}/{version_id}"], "put the runner in its place")
    before = _current_id(transport, root)
    _flip(transport, root, version_id)
    _remove_others(transport, root, {version_id, before})
    return Runner(version_id, runner_python(root), found)


def _send(transport: Transport, root: str, staged: str, wheels: Wheels) -> None:
    """Bring the wheels to the staging folder that it has not got yet."""
    paths = {f"{staged}/wheels/{wheel.name}": wheel for wheel in wheels.files}
    old = {f"{child(root, 'runner')}/current/wheels/{wheel.name}": wheel for wheel in wheels.files}
    here, there = _hashes(transport, list(paths)), _hashes(transport, list(old))
    for (path, wheel), known in zip(paths.items(), old, strict=True):
        if here.get(path) == wheel.sha256:
            continue
        if there.get(known) == wheel.sha256 and transport.run(["ln", "-f", known, path]).code == 0:
            continue
        transport.push(wheels.folder / wheel.name, path)
    with TemporaryDirectory() as folder:
        manifest = Path(folder) / MANIFEST
        manifest.write_bytes(wheels.manifest_bytes)
        transport.push(manifest, f"{staged}/{MANIFEST}")


def _hashes(transport: Transport, paths: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of those files that the device has; toybox and coreutils print it alike."""
    done = transport.run(["sha256sum", *paths], timeout=_UNPACK_SECONDS)
    pairs = (line.partition("  ") for line in done.out.decode("utf-8", "replace").splitlines())
    return {path: digest for digest, _, path in pairs}


def _try(transport: Transport, folder: str) -> dict[str, str]:
    done = transport.run([f"{folder}/bin/python", "-I", "-c", _TRY], timeout=600.0)
    if done.code:
        raise DeviceError(_reason("the runner was unpacked and does not start", done))
    versions = json.loads(done.out)
    assert isinstance(versions, dict)
    return versions


def _current(transport: Transport, root: str) -> Runner | None:
    """Return the current runner if it answers."""
    version_id = _current_id(transport, root)
    if not version_id:
        return None
    done = transport.run([runner_python(root), "-I", "-c", _TRY], timeout=600.0)
    return Runner(version_id, runner_python(root), json.loads(done.out)) if done.code == 0 else None


def _current_id(transport: Transport, root: str) -> str:
    done = transport.run(["readlink", child(root, "runner", "current")])
    return done.out.decode("utf-8", "replace").strip().rpartition("/")[2] if done.code == 0 else ""


def _flip(transport: Transport, root: str, version_id: str) -> None:
    """Make a version the current one: a link beside is renamed over the old one, so that there is always one."""
    beside = child(root, "runner", ".current")
    _must(transport, ["ln", "-sfn", f"versions/{version_id}", beside], "link the runner")
    _must(transport, ["mv", "-T", beside, child(root, "runner", "current")], "link the runner")


def _versions(transport: Transport, root: str) -> list[str]:
    return transport.run(["ls", "-1", child(root, "runner", "versions")]).out.decode("utf-8", "replace").splitlines()


def _remove_others(transport: Transport, root: str, kept: set[str]) -> None:
    for name in set(_versions(transport, root)) - kept:
        _must(transport, ["rm", "-rf", child(root, "runner", "versions", name)], "remove an old runner")


def _must(transport: Transport, words: Sequence[str], what: str) -> Completed:
    done = transport.run(words, timeout=_UNPACK_SECONDS)
    if done.code:
        raise DeviceError(_reason(f"cannot {what} on the device", done))
    return done


def _reason(what: str, done: Completed) -> str:
    said = done.err.decode("utf-8", "replace").strip().splitlines() or [f"exit code {done.code}"]
    if done.code == unpack_wheels.REFUSED:  # its line has the remedy
        return f"{what} ({said[-1]})"
    if "No space left" in said[-1]:
        return f"{what} ({said[-1]}): free some space there and push again"
    return f"{what} ({said[-1]}): see what `mobiedit-device doctor` says"


def _script() -> bytes:
    return Path(unpack_wheels.__file__).read_bytes()
