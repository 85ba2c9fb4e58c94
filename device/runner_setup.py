"""A device looked at, the wheels that it needs fetched, and the runner installed there: what ``push --runner`` does."""

from __future__ import annotations

import tempfile
from pathlib import Path

from .doctor import Works, judge, platform_of
from .errors import DeviceError
from .facts import read_facts
from .paths import check_root
from .runner import Runner, push_runner
from .transport import Transport
from .wheels import fetch_wheels, read_wheels


def set_up_runner(
    transport: Transport,
    root: str,
    *,
    python: str = "python3",
    wheels: Path | None = None,
    project_wheel: Path | None = None,
) -> Runner:
    """Install the runner that suits a device; with the QNN provider where the NPU will work.

    Parameters
    ----------
    root
        The allowed root on the device.
    python
        The device's Python: a name or a path.
    wheels
        A folder that `fetch_wheels` wrote before, for a host without a network.
    project_wheel
        The project's wheel; without it, one is built from the source tree that this runs from.

    Raises
    ------
    DeviceError
        When nothing works on the device, with doctor's reason; or as `fetch_wheels` and `push_runner` do.
    """
    facts = read_facts(transport, check_root(root), python)
    verdict, platform = judge(facts), platform_of(facts)
    if verdict.works is Works.NOTHING:
        raise DeviceError(f"the runner does not work on this device: {verdict.reasons[0]}")
    if platform is None:
        raise DeviceError("the device does not tell its version of glibc: install libc-bin there, which has getconf")
    if wheels is not None:
        return push_runner(transport, root, read_wheels(wheels), python)
    with tempfile.TemporaryDirectory() as folder:
        fetched = fetch_wheels(
            Path(folder) / "wheels", platform, qnn=verdict.works is Works.NPU, project_wheel=project_wheel
        )
        return push_runner(transport, root, fetched, python)
