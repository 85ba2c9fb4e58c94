"""What may be set of the QNN execution provider, which itself accepts a name or value that it does not know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from .errors import RequestError

_MODES = (
    "default",
    "burst",
    "balanced",
    "high_performance",
    "high_power_saver",
    "low_balanced",
    "low_power_saver",
    "power_saver",
    "extreme_power_saver",
    "sustained_high_performance",
)
_ALLOWED = {
    "htp_performance_mode": _MODES,
    "htp_graph_finalization_optimization_mode": ("0", "1", "2", "3"),
    "qnn_context_priority": ("low", "normal", "normal_high", "high"),
}


@dataclass(frozen=True)
class QnnOptions:
    """Options of the provider, under its own names (onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider).

    Attributes
    ----------
    htp_performance_mode
        How fast, and how hungry, the NPU's clock is: an edit is one short burst of work.
    htp_graph_finalization_optimization_mode
        How long a graph is compiled to run faster, 0 to 3; 0 is the provider's default.
    qnn_context_priority
        Against other programs on the NPU.
    """

    htp_performance_mode: str = "burst"
    htp_graph_finalization_optimization_mode: str = "0"
    qnn_context_priority: str = "normal"

    def __post_init__(self) -> None:
        """Refuse a value that the provider would pass over in silence."""
        for name, value in asdict(self).items():
            if value not in _ALLOWED[name]:
                raise RequestError(f"QNN option {name} is not {value!r}: give one of {', '.join(_ALLOWED[name])}")

    @staticmethod
    def of(given: Mapping[str, str]) -> QnnOptions:
        """Return the options with some of them given by name.

        Raises
        ------
        RequestError
            When there is no such name, or not such a value.
        """
        known = [field.name for field in fields(QnnOptions)]
        if unknown := sorted(given.keys() - set(known)):
            raise RequestError(f"QNN option {unknown[0]!r} is not known: give one of {', '.join(known)}")
        return QnnOptions(**given)
