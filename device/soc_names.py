"""Which SoC a device is, from the names that it gives itself."""

from __future__ import annotations

from collections.abc import Iterable

from mobiedit.runtime.soc import SOCS, Soc

# The kernel's numbers (Linux, include/dt-bindings/arm/qcom,ids.h), which /sys/devices/soc0/soc_id states.
_KERNEL_IDS = {
    "439": "SM8350",
    "457": "SM8450",
    "519": "SM8550",
    "555": "X1E80100",
    "557": "SM8650",
    "603": "QCS8550",
    "614": "SM8635",
    "618": "SM8750",
    "660": "SM8850",
    "667": "QCS9100",
    "674": "QCS8300",
}
# What Linux calls the laptops' SoC (arch/arm64/boot/dts/qcom), which is SC8380XP to QNN.
_OTHER_NAMES = {"X1E80100": "SC8380XP", "X1E78100": "SC8380XP"}


def identify(names: Iterable[str]) -> Soc | None:
    """Return the SoC of the first name that is known.

    Parameters
    ----------
    names
        Android's ``ro.soc.model`` (SM8650), the kernel's ``machine`` and ``soc_id`` (SM8650, 557), entries of the
        device tree's ``compatible`` (qcom,sm8650).
    """
    known = {soc.name: soc for soc in SOCS}
    for name in names:
        part = name.strip().upper().removeprefix("QCOM,")
        part = _KERNEL_IDS.get(part, part)
        if soc := known.get(_OTHER_NAMES.get(part, part)):
            return soc
    return None
