"""What a user may set for an export."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mobiedit.calibration.activation_ranges import RangeMethod
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.soc import Soc, find_soc


class Precision(StrEnum):
    """Numbers of the prefix, suffix and head graphs; the edit layer's MLP is always FP32."""

    W8A16 = "w8a16"
    W8A8 = "w8a8"
    MIXED = "mixed"
    W8 = "w8"
    W4 = "w4"
    FP16 = "fp16"
    FP32 = "fp32"

    @property
    def of_head(self) -> Precision:
        """The head's: under ``w4`` it has 8 bits, since it bears 4 badly (docs/benchmarks.md)."""
        return Precision.W8 if self is Precision.W4 else self


STATIC = (Precision.W8A16, Precision.W8A8, Precision.MIXED)
"""Precisions with static activations: they have ranges, and the NPU takes them."""

ROTATED = (Precision.W8A8, Precision.MIXED)
"""Precisions that a rotation serves (docs/benchmarks.md): it is on by default for these."""

WEIGHT_ONLY = (Precision.W8, Precision.W4)
"""Precisions whose weights alone have few bits, in blocks."""

BLOCKS = (16, 32, 64, 128, 256)
"""How many inputs may share a scale: what ONNX Runtime's kernels take."""

BLOCK = 32
KEY_STATISTICS_BYTES = 32_000_000
NLL_BUDGET = 0.05


class Target(StrEnum):
    """What the bundle is for: ONNX Runtime's CPU provider, or Qualcomm's NPU."""

    CPU = "cpu"
    QNN = "qnn"


@dataclass(frozen=True)
class ExportConfig:
    """One export.

    Attributes
    ----------
    model
        ``smollm2-135m``, a folder, a .gguf file, or a Hub id.
    out
        The bundle to write.
    layer
        The edit layer, or None to choose it.
    ranges
        How activation ranges are chosen, or None for `RangeMethod.MIN_MAX`; for static
        precisions alone. At 8 bits it is `RangeMethod.MSE`.
    block
        Inputs that share a scale, and in 4 bits a zero point; for w8 and w4 alone.
    nll_budget
        Largest joint cost of the 8-bit activations on calibration text (nats a token), or None for 0.05; for mixed
        alone.
    rotate
        Whether the residual stream is rotated, or None for what the precision is best with.
    report
        A folder for the error of each layer, or None.
    samples
        Lines of calibration text that the ranges are taken from.
    calibration_text
        A file with one sentence a line, or None for the project's own.
    dynamic_multiplier
        Key vectors for the statistics, as a multiple of the MLP's width.
    key_statistics_bytes
        What their file may have, at most.
    facts
        Evaluation records that the lens is fitted on, or None for the project's own relations.
    lens_rows
        Facts that the fitting sees.
    slots
        Edits that the bundle holds at once.
    soc
        Names of the SoCs that graphs are compiled for.
    compile
        Whether they are compiled; None is: when there are SoCs.
    """

    model: str
    out: Path
    layer: int | None = None
    precision: Precision = Precision.W8A16
    target: Target = Target.CPU
    ranges: RangeMethod | None = None
    block: int = BLOCK
    nll_budget: float | None = None
    rotate: bool | None = None
    report: Path | None = None
    samples: int = 32
    calibration_text: Path | None = None
    dynamic_multiplier: float = 10.0
    key_statistics_bytes: int = KEY_STATISTICS_BYTES
    facts: Path | None = None
    lens_rows: int = 6000
    slots: int = 32
    revision: str | None = None
    trust_remote_code: bool = False
    force: bool = False
    soc: tuple[str, ...] = ()
    compile: bool | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be exported."""
        if self.slots < 1:
            raise RequestError("--slots must be 1 or more: give the number of edits that the bundle shall hold")
        if self.lens_rows < 1:
            raise RequestError("--lens-rows must be 1 or more: 6000 is a good value")
        if self.samples < 1:
            raise RequestError("--samples must be 1 or more: 32 is a good value")
        if self.ranges is not None and self.precision not in STATIC:
            raise RequestError(
                f"--ranges does not fit --precision {self.precision}, which has no static activations: "
                "use --precision w8a16, or leave --ranges out"
            )
        if self.block not in BLOCKS:
            raise RequestError(f"--block is one of {', '.join(map(str, BLOCKS))}: {BLOCK} is a good value")
        if self.block != BLOCK and self.precision not in WEIGHT_ONLY:
            raise RequestError(f"--block does not fit --precision {self.precision}: use w8 or w4, or leave it out")
        if not (math.isfinite(self.dynamic_multiplier) and self.dynamic_multiplier > 0):
            raise RequestError("--dynamic-multiplier must be above 0: 10 is a good value")
        if self.key_statistics_bytes < 1:
            raise RequestError("--key-statistics-mb must be above 0: 32 is a good value")
        if self.nll_budget is not None:
            if self.precision is not Precision.MIXED:
                raise RequestError(
                    f"--nll-budget does not fit --precision {self.precision}: use --precision mixed, or leave it out"
                )
            if not (math.isfinite(self.nll_budget) and self.nll_budget > 0):
                raise RequestError(f"--nll-budget must be above 0: {NLL_BUDGET} is a good value")
        if self.target is Target.QNN and self.precision not in STATIC:
            raise RequestError(
                f"the NPU does not take {self.precision} graphs: use --precision w8a16 (or mixed, or w8a8) "
                "with --target qnn"
            )
        if self.soc and self.target is not Target.QNN:
            raise RequestError(f"--soc means nothing to --target {self.target}: add --target qnn, or leave --soc out")
        if self.compile and not self.soc:
            raise RequestError("--compile needs a SoC: add --target qnn --soc SM8650, or whichever the device has")
        self._socs()  # an unknown one is refused before any work

    @property
    def budget(self) -> float:
        """What ``nll_budget`` stands for, nats a token; 0 where no activations have a choice."""
        if self.precision is not Precision.MIXED:
            return 0.0
        return NLL_BUDGET if self.nll_budget is None else self.nll_budget

    @property
    def rotated(self) -> bool:
        """What ``rotate`` stands for."""
        return self.precision in ROTATED if self.rotate is None else self.rotate

    @property
    def compiled_for(self) -> tuple[Soc, ...]:
        """The SoCs that graphs are compiled for at export, each once."""
        return () if self.compile is False else self._socs()

    def _socs(self) -> tuple[Soc, ...]:
        try:
            return tuple(dict.fromkeys(find_soc(name) for name in self.soc))
        except RequestError as error:
            raise RequestError(str(error).replace("use --ep cpu", "leave it out of --soc")) from error
