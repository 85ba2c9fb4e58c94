"""The benchmark: edit one record at a time, measure it before and after, commit nothing."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..bundle import Bundle
from ..configuration import EditConfig, ExecutionConfig
from ..errors import RequestError
from ..files import sha256_of
from ..manifest_fields import MANIFEST_NAME
from ..search import Search
from .cached_reader import CachedReader
from .data_file import DataFile
from .measured import MeasuredRecord, Observation, observe
from .records import EvaluationRecord
from .result_file import ResultFile


@dataclass(frozen=True)
class BenchConfig:
    """A benchmark's settings.

    Attributes
    ----------
    edit
        The settings of every edit.
    seed
        What the sampling of each record's continuation starts from.
    skip, limit
        Leave out the first records, and take so many of the rest; None takes all.
    fluency_tokens
        Length of the continuation that tells fluency; 0 leaves it out.
    """

    edit: EditConfig = field(default_factory=EditConfig)
    seed: int = 0
    skip: int = 0
    limit: int | None = None
    fluency_tokens: int = 100

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if min(self.seed, self.skip, self.fluency_tokens) < 0:
            raise RequestError("seed, skip and fluency tokens must be 0 or more: give whole numbers")
        if self.limit is not None and self.limit < 1:
            raise RequestError("the limit must be 1 or more: give a whole number, or leave it out")


@dataclass(frozen=True)
class ForeignSearch:
    """A search that is none of the project's own optimizers, for comparisons.

    Attributes
    ----------
    name
        What the result calls it, in the place of the optimizer.
    settings
        What its figures depend on, as plain data.
    search
        The search itself.
    """

    name: str
    settings: Mapping[str, Any]
    search: Search


# What an edit's settings say where another search stands for the optimizer.
_OF_ANY_SEARCH = ("method", "contrasts", "loss", "prefix_cache", "stale_tokens", "max_target_tokens")


def run_bench(
    bundle: Bundle,
    data: DataFile,
    config: BenchConfig,
    out: Path,
    *,
    resume: bool = False,
    foreign: ForeignSearch | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Measure an edit of each record, on top of the edits that the bundle has, and write the figures to ``out``.

    The file is whole after every record, and the bundle is never written to: a run may be killed at any time, and
    goes on with ``resume``.

    Parameters
    ----------
    out
        The JSON file; its folder must exist.
    resume
        Go on after the records that ``out`` holds.
    foreign
        Another way to search for delta than the one that ``config`` names.
    report
        Called with the number of records done and the number of all, first before any is measured.

    Returns
    -------
    dict
        What ``out`` holds: ``settings``, ``records``, ``summary``, ``further``, ``easyedit``.

    Raises
    ------
    RequestError
        When no record is left to measure, or ``out`` is not to be written or gone on with.
    NumericsError
        When a graph returned NaN or infinity.
    StorageError
        When the disk refuses.
    """
    chosen = data.part(config.skip, config.limit)
    result = ResultFile(out, _settings(bundle, data, config, foreign), resume=resume)
    report(len(result.records), len(chosen))
    for position in range(len(result.records), len(chosen)):
        seed = (config.seed, config.skip + position)
        result.append(measure_record(bundle, chosen[position], config.edit, config.fluency_tokens, seed, foreign))
        report(position + 1, len(chosen))
    return result.document


def measure_record(
    bundle: Bundle,
    record: EvaluationRecord,
    config: EditConfig,
    fluency_tokens: int,
    seed: tuple[int, ...],
    foreign: ForeignSearch | None = None,
) -> MeasuredRecord:
    """Measure a record before and after its edit, which is not committed.

    An edit that is refused leaves the model as it was, so its figures after are those before.

    Parameters
    ----------
    fluency_tokens, seed
        As in `observe`.
    foreign
        As in `run_bench`.
    """
    before = CachedReader(bundle.reader())
    pre = Observation()
    more: dict[str, Any]
    try:
        pre = observe(record, before, before, fluency_tokens, seed)
        solved, reader = bundle.trial(record.request, config, search=foreign.search if foreign else None)
        post = observe(record, CachedReader(reader), before, fluency_tokens, seed)
        more = {
            "failures": solved.failures,
            "steps": solved.search.steps,
            "stopped_early": solved.search.stopped_early,
            "looks": tuple((look.forwards, look.loss, look.target_probability) for look in solved.search.looks),
            "cost": solved.cost,
        }
    except RequestError as error:
        post = pre
        more = {"error": str(error)}
    return MeasuredRecord(
        record.identifier,
        record.prompt,
        record.subject,
        record.target,
        pre.metrics,
        post.metrics,
        {"pre": pre.top_tokens, "post": post.top_tokens},
        {"pre": pre.answer, "post": post.answer},
        foreign.name if foreign else config.optimizer.value,
        easyedit={"pre": pre.easyedit, "post": post.easyedit},
        **more,
    )


def _settings(bundle: Bundle, data: DataFile, config: BenchConfig, foreign: ForeignSearch | None) -> dict[str, Any]:
    """Return all that the figures depend on."""
    manifest = bundle.manifest
    edit = asdict(config.edit)
    if foreign:
        edit = {name: edit[name] for name in _OF_ANY_SEARCH} | {foreign.name: dict(foreign.settings)}
    return {
        "bundle": bundle.path.resolve().name,
        "bundle_sha256": sha256_of(bundle.path / MANIFEST_NAME),
        "base": manifest.base.name,
        "precision": manifest.precision,
        "edit_layer": manifest.edit_layer,
        "edits": [edit.edit_id for edit in bundle.edits()],
        "optimizer": foreign.name if foreign else config.edit.optimizer.value,
        "seed": config.seed,
        "data": data.name,
        "data_sha256": data.sha256,
        "format": data.format.value,
        "limit": config.limit,
        "skip": config.skip,
        "fluency_tokens": config.fluency_tokens,
        "threads": bundle.execution.threads,
        **npu_settings(bundle.execution),
        "edit": edit,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("mobiedit", "numpy", "onnxruntime")},
        },
    }


def npu_settings(execution: ExecutionConfig) -> dict[str, Any]:
    """Return what figures depend on where the NPU runs the graphs.

    Nothing on the CPU, so that results of versions that knew no other provider can be gone on with.
    """
    if not execution.target:
        return {}
    return {"execution_provider": execution.provider.value, "soc": execution.target.name, "qnn": asdict(execution.qnn)}
