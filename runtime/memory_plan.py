"""The peak resident memory of an edit and of an answer, predicted from the manifest alone.

What a graph takes for each byte of its files depends on what ONNX Runtime's CPU provider does with its weights. The
factors were measured on x86-64 Linux (docs/benchmarks.md, "Memory"); another version of it may do other things. Where
the NPU runs the graphs, the figures are those of the host's side on the CPU and mean little.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .bundle_layout import GRAPHS, LENS, TOKENIZER
from .configuration import ExecutionConfig, GaussNewtonConfig
from .manifest import Manifest, ModelShape
from .readout_loss import logits_at_once
from .staged_edit import graph_bytes, stages_edits
from .staging import STAGES

_BASE = 78_000_000  # the interpreter, numpy, and ONNX Runtime with the code that its kernels touch
_TOKENIZER = 9.0  # bytes for each byte of tokenizer.json
_ROW_TOKENS = 20  # of a prompt row
_WINDOW_TOKENS = 4  # of a row from the subject's last token on
_ANSWER_TOKENS = 2
_ACTIVATIONS = 3  # arrays as wide as the MLP that are alive at once in a layer
_LOGITS = 2.25  # copies: the session's or one to work with, numpy's, and a flag for each
_EPOCHS = 4  # of an ordinary search, each with its columns of the Jacobian


@dataclass(frozen=True)
class _Factors:
    """What a graph's weights take for each byte of its files.

    Attributes
    ----------
    resident
        When its session is open and was run.
    opening
        At most, while the session is made: a single large weight is there twice until it is packed.
    unpacked
        Copies of the largest weight in FP32 that a run makes, one graph at a time.
    """

    resident: float
    opening: float
    unpacked: int = 0


_FP32 = _Factors(1.02, 2.0)
_W8 = _Factors(1.22, 2.15)  # packed: weights, scales and sums; the unpacked scales stay mapped
_W4 = _Factors(1.04, 1.04, unpacked=1)  # mapped as it is, made FP32 in every run
_FOLDED = _Factors(4.4, 6.5)  # w8a16: 8-bit weights made FP32 when the session is
_FP16 = _Factors(2.05, 4.0)


def predicted_peaks(manifest: Manifest, execution: ExecutionConfig) -> dict[str, int]:
    """Return the peak resident memory of an ``edit`` and of an ``ask``, in bytes.

    An edit is taken to have rows of 20 tokens and a target of two; an answer to be read with all graphs open, since
    staged ones would be swapped at every token.
    """
    size = {name: entry.size for name, entry in manifest.files.items()}
    base = _BASE + _TOKENIZER * size.get(TOKENIZER, 0)
    search = base + size.get(LENS, 0) + _search_bytes(manifest)
    stages = STAGES if stages_edits(manifest, execution) else (GRAPHS,)
    edit = max(search + _resident(manifest, stage) for stage in stages)
    ask = base + _resident(manifest, GRAPHS) + _activations(manifest.shape, _ROW_TOKENS)
    opening = base + _factors(manifest, "head").opening * graph_bytes(manifest, "head")
    return {"edit": round(max(edit, opening + size.get(LENS, 0))), "ask": round(max(ask, opening))}


def memory_warning(predicted: int, table: Path = Path("/proc/meminfo")) -> str | None:
    """Return a line for the user when less memory is free than is predicted, where the system tells."""
    try:
        lines = dict(line.split(":", 1) for line in table.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return None
    if free >= predicted:
        return None
    return f"warning: about {predicted / 1e9:.1f} GB will be needed, {free / 1e9:.1f} GB are free: close other programs"


def _factors(manifest: Manifest, graph: str) -> _Factors:
    if graph == "edit":
        return _FP32
    of_precision = {"w8": _W8, "w4": _W8 if graph == "head" else _W4, "w8a16": _FOLDED, "fp16": _FP16}
    return of_precision.get(manifest.precision, _FP32)


def _resident(manifest: Manifest, graphs: Iterable[str]) -> float:
    """Return what graphs take that are open together."""
    largest = 4 * manifest.shape.width * manifest.shape.mlp_width
    factors = {graph: _factors(manifest, graph) for graph in graphs}
    weights = sum(each.resident * graph_bytes(manifest, graph) for graph, each in factors.items())
    return weights + max(each.unpacked for each in factors.values()) * largest


def _search_bytes(manifest: Manifest) -> float:
    shape, search = manifest.shape, GaussNewtonConfig()
    rows = len(manifest.row_prefixes) + 1
    suffix_layers = shape.n_layers - manifest.edit_layer - 1
    tokens = rows * max(_ROW_TOKENS, search.directions * _WINDOW_TOKENS)
    cache = 2 * 4 * suffix_layers * shape.n_kv_heads * shape.head_dim * _ROW_TOKENS
    caches = cache * (1 + search.directions) * rows
    columns = min(search.columns, _EPOCHS * search.directions * search.groups)
    jacobian = 2 * 4 * columns * shape.width * rows * _ANSWER_TOKENS
    logits = _LOGITS * 4 * shape.vocabulary * min(logits_at_once(shape.vocabulary), 4 * (rows - 1) * _ANSWER_TOKENS)
    return _activations(shape, tokens) + caches + jacobian + logits + 4 * rows * _ROW_TOKENS * shape.mlp_width


def _activations(shape: ModelShape, tokens: int) -> float:
    return 4 * tokens * (_ACTIVATIONS * shape.mlp_width + 6 * shape.width)
