"""The export's stages for the NPU: the check on the simulator, and a compilation for each SoC."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mobiedit.runtime.bundle_layout import GRAPHS
from mobiedit.runtime.contexts import SocContexts
from mobiedit.runtime.static_graphs import compiled_shapes

from .compilation import compile_contexts
from .configuration import ExportConfig, Precision, Target
from .npu_check import MIN_COSINE, MIN_COSINE_AT_8_BITS, compare_on_npu
from .progress import Stages


@dataclass(frozen=True)
class PreparedForNpu:
    """What the manifest says of the NPU.

    Attributes
    ----------
    cosines
        Of each graph, between simulator and CPU.
    contexts
        What was compiled for each SoC.
    notes
        What the user should know.
    """

    cosines: dict[str, float] = field(default_factory=dict)
    contexts: dict[str, SocContexts] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def prepare_for_npu(folder: Path, config: ExportConfig, rows: int, context: int, stages: Stages) -> PreparedForNpu:
    """Check the graphs in a folder on the simulator and compile them for each SoC; nothing, unless the target is QNN.

    Parameters
    ----------
    rows
        Of an edit.
    context
        The bundle's longest text.

    Raises
    ------
    ExportError
        When a graph does not run on the NPU as a whole, or gives other results there.
    """
    if config.target is not Target.QNN:
        return PreparedForNpu()
    with stages.stage("check on the NPU simulator", len(GRAPHS)) as advance:
        limit = MIN_COSINE if config.precision is Precision.W8A16 else MIN_COSINE_AT_8_BITS
        cosines = compare_on_npu(folder, advance, limit)
    shapes, contexts = compiled_shapes(rows, context), {}
    for soc in config.compiled_for:
        with stages.stage(f"compile for {soc.name}", sum(len(sizes) for sizes in shapes.values())) as advance:
            contexts[soc.name] = compile_contexts(folder, soc, shapes, advance)
    if contexts:
        return PreparedForNpu(cosines, contexts)
    return PreparedForNpu(cosines, {}, ("no context binaries: sessions on the NPU compile; --soc compiles at export",))
