"""How good an edit is: records with a fact and its surroundings, metrics, and the benchmark over many."""

from .bench import BenchConfig, ForeignSearch, run_bench
from .data_file import DataFile, read_records
from .measured import MeasuredRecord, Metrics
from .records import EvaluationRecord, Format, Question

__all__ = [
    "BenchConfig",
    "DataFile",
    "EvaluationRecord",
    "ForeignSearch",
    "Format",
    "MeasuredRecord",
    "Metrics",
    "Question",
    "read_records",
    "run_bench",
]
