"""Qualcomm's systems on a chip: the number that QNN knows each by, and the architecture of its NPU.

QNN compiles for one SoC. The numbers and architectures are those that QNN's own library states: a graph compiled for a
number by ``onnxruntime-qnn`` 2.7.0 carries its target's name and HTP architecture (``soc_type=SM8650;arch=75``).
Qualcomm's ExecuTorch backend (``backends/qualcomm/serialization/qc_schema.py``) has the same figures for those that it
lists. A SoC of which the library states two architectures is left out, as SM8475. What a SoC is sold as is not in the
library: those names are for the reader alone.
"""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass

from .errors import RequestError

_OLDEST_WITH_FP16 = 69


@dataclass(frozen=True)
class Soc:
    """One SoC.

    Attributes
    ----------
    name
        Qualcomm's part number.
    model
        What QNN's option ``soc_model`` takes.
    htp
        Architecture of its Hexagon tensor processor, the NPU: 73 is v73.
    found_in
        What it is sold as.
    """

    name: str
    model: int
    htp: int
    found_in: str

    @property
    def architecture(self) -> str:
        """The HTP architecture as Qualcomm writes it."""
        return f"v{self.htp}"

    @property
    def has_fp16(self) -> bool:
        """Whether the NPU computes in FP16, as the edit layer is run; v68 takes integers alone."""
        return self.htp >= _OLDEST_WITH_FP16


SOCS = (
    Soc("SM8350", 30, 68, "phones: Snapdragon 888"),
    Soc("SM8450", 36, 69, "phones: Snapdragon 8 Gen 1"),
    Soc("SM8550", 43, 73, "phones: Snapdragon 8 Gen 2"),
    Soc("SM8635", 68, 73, "phones: Snapdragon 8s Gen 3"),
    Soc("SM8650", 57, 75, "phones: Snapdragon 8 Gen 3"),
    Soc("SM8735", 85, 73, "phones: Snapdragon 8s Gen 4"),
    Soc("SM8750", 69, 79, "phones: Snapdragon 8 Elite"),
    Soc("SM8845", 97, 81, "phones: Snapdragon 8 Gen 5"),
    Soc("SM8850", 87, 81, "phones: Snapdragon 8 Elite Gen 5"),
    Soc("SC8380XP", 60, 73, "laptops: Snapdragon X Elite and X Plus"),
    Soc("SC8480XP", 88, 81, "laptops: Snapdragon X2 Elite"),
    Soc("QCS6490", 93, 68, "Linux boards: RB3 Gen 2"),
    Soc("QCS8300", 82, 75, "Linux boards: IQ8 series"),
    Soc("QCS8550", 66, 73, "Linux boards"),
    Soc("QCS9100", 77, 73, "Linux boards: IQ9 series"),
)

SIMULATED = "SM8650"
"""What the simulator stands in for when no SoC is named."""


def simulated_here() -> bool:
    """Return whether QNN runs on its simulator: on x86-64 Linux, where Qualcomm makes no NPU."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


def find_soc(name: str | None) -> Soc:
    """Return the SoC of a name, in whatever case; without one, the simulator's default.

    Raises
    ------
    RequestError
        When it is not known, cannot run the edit layer, or is left out on a device: QNN's own default computes wrongly
        without an error.
    """
    known = ", ".join(soc.name for soc in SOCS if soc.has_fp16)
    if name is None:
        if not simulated_here():
            raise RequestError(f"--ep qnn must know the device's SoC: add --soc with one of {known}")
        name = SIMULATED
    found = next((soc for soc in SOCS if soc.name == name.upper()), None)
    if found is None:
        raise RequestError(f"SoC {name!r} is not known: give one of {known}")
    if not found.has_fp16:
        raise RequestError(
            f"the NPU of {found.name} ({found.architecture}) has no FP16, which the edit layer needs: "
            f"use --ep cpu, or another SoC ({known})"
        )
    return found
