"""Which packages the runner needs on a device: in the versions that are installed here, and so were tested."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.tags import parse_tag
from packaging.utils import canonicalize_name

from .errors import DeviceError

PROJECT = "mobiedit"
QNN = "onnxruntime-qnn"

_ON_WINDOWS = {"aarch64": "ARM64", "x86_64": "AMD64"}
_GLIBC_WITHOUT_METADATA = (
    2,
    28,
)  # what onnxruntime's aarch64 wheel states since 1.20; for hosts that have no Linux wheel


@dataclass(frozen=True)
class Platform:
    """What wheels are made for.

    Attributes
    ----------
    architecture
        As Linux names it: aarch64, x86_64.
    glibc
        The device's version: wheels that need a later one do not load.
    python
        The device's CPython, major and minor.
    windows
        Whether it is Windows: then `glibc` has no meaning.
    """

    architecture: str
    glibc: tuple[int, int]
    python: tuple[int, int]
    windows: bool = False

    @property
    def tags(self) -> tuple[str, ...]:
        """Platform tags of the wheels that run there (Linux: PEP 600), the latest glibc first."""
        if self.windows:
            return ("win_arm64" if self.architecture == "aarch64" else "win_amd64",)
        later = range(self.glibc[1], 16, -1)
        return (*(f"manylinux_2_{minor}_{self.architecture}" for minor in later), f"manylinux2014_{self.architecture}")

    @property
    def markers(self) -> dict[str, str]:
        """The environment that requirements are evaluated in (PEP 508)."""
        version = f"{self.python[0]}.{self.python[1]}"
        return {
            "os_name": "nt" if self.windows else "posix",
            "sys_platform": "win32" if self.windows else "linux",
            "platform_system": "Windows" if self.windows else "Linux",
            "platform_machine": _ON_WINDOWS.get(self.architecture, "") if self.windows else self.architecture,
            "platform_python_implementation": "CPython",
            "implementation_name": "cpython",
            "python_version": version,
            "python_full_version": f"{version}.0",
        }


def needed(platform: Platform, *, qnn: bool) -> dict[str, str]:
    """Return the packages that the runner needs on a platform, by name, with the versions that are installed here.

    Parameters
    ----------
    qnn
        Whether the QNN provider is among them.

    Returns
    -------
    dict
        A package that is not installed here has no version, the empty text, and what it needs itself is not known.
    """
    found: dict[str, str] = {}
    wanted = [(PROJECT, "qnn" if qnn else "")]
    while wanted:
        name, extra = wanted.pop()
        try:
            here = distribution(name)
        except PackageNotFoundError:
            continue
        if name != PROJECT:
            found[name] = here.version
        for text in here.requires or ():
            requirement = Requirement(text)
            marker, package = requirement.marker, canonicalize_name(requirement.name)
            if package not in found and (marker is None or marker.evaluate({**platform.markers, "extra": extra})):
                found[package] = ""
                wanted.append((package, ""))
    return dict(sorted(found.items()))


def pinned(platform: Platform, *, qnn: bool) -> dict[str, str]:
    """Return what `needed` does, with a version for each.

    Raises
    ------
    DeviceError
        When one of them is not installed here, so that its version is not known.
    """
    found = needed(platform, qnn=qnn)
    if unknown := [name for name, version in found.items() if not version]:
        raise DeviceError(
            f"a device gets the versions that are installed here, and {', '.join(unknown)} is not: "
            f"pip install {' '.join(unknown)}"
        )
    return found


def needed_glibc(name: str) -> tuple[int, int]:
    """Return the oldest glibc that a package's wheel of the installed version runs on, by the wheel's own tags.

    Where the host's wheel is not for Linux, it is what onnxruntime's wheels for Linux state.
    """
    try:
        text = distribution(name).read_text("WHEEL") or ""
    except PackageNotFoundError:
        text = ""
    tags = [line.removeprefix("Tag: ") for line in text.splitlines() if line.startswith("Tag: ")]
    versions = [version for tag in tags if (version := glibc_of(tag))]
    return min(versions, default=_GLIBC_WITHOUT_METADATA)


def glibc_of(tag: str) -> tuple[int, int] | None:
    """Return the glibc that a tag asks for (cp311-cp311-manylinux_2_28_aarch64: 2.28); None where it asks for none."""
    found = []
    for each in parse_tag(tag):
        words = each.platform.split("_")
        if words[0] == "manylinux2014":
            found.append((2, 17))
        elif words[0] == "manylinux" and len(words) > 3:
            found.append((int(words[1]), int(words[2])))
    return min(found, default=None)
