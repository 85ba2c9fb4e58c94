"""Results of `mobiedit bench`, or of another program that keeps its layout, as a report reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import RequestError
from ..search import Look
from .summary import COSTS, SCORES

COST_UNITS: dict[str, tuple[str, float]] = {
    "forwards": ("forwards", 1),
    "token_layers": ("token-layers", 1),
    "wall_s": ("seconds", 1),
    "peak_rss_bytes": ("peak memory, MiB", 2**20),
}
"""What a report calls each cost, and the unit that it is told in."""

Tokens = tuple[tuple[str, float | None], ...]
_T = TypeVar("_T", dict, list, str)  # type: ignore[type-arg]


@dataclass(frozen=True)
class Metric:
    """A mean over the records before and after the edit, with the 95 % interval of the latter."""

    pre: float | None
    post: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Spread:
    """The median of a cost over the records, and its maximum."""

    median: float
    max: float


@dataclass(frozen=True)
class Record:
    """What a report tells of one edit."""

    identifier: str
    prompt: str
    subject: str
    target: str
    top_before: Tokens
    top_after: Tokens
    answer_before: str
    answer_after: str
    failures: tuple[str, ...]
    error: str
    looks: tuple[Look, ...]

    @property
    def failed(self) -> bool:
        """Whether the edit was refused or did not pass its check."""
        return bool(self.error or self.failures)


@dataclass(frozen=True)
class Result:
    """One file. ``metrics`` and ``costs`` hold only what was measured."""

    name: str
    file: str
    settings: dict[str, str]
    further: dict[str, str]
    metrics: dict[str, Metric]
    costs: dict[str, Spread]
    records: tuple[Record, ...]


def read_results(paths: Sequence[Path]) -> tuple[Result, ...]:
    """Read result files and give each a name of its own, the stem of the file where it can be.

    Raises
    ------
    RequestError
        When a file is missing, is not JSON or is not a result.
    """
    results: list[Result] = []
    for path in paths:
        results.append(_read(path, _new_name(path, {result.name for result in results})))
    return tuple(results)


def _new_name(path: Path, taken: set[str]) -> str:
    # A name in another encoding comes with half characters, which no page can hold.
    stem = " ".join(path.stem.encode("utf-8", "replace").decode().split())
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem} ({number})"
    return name


def _read(path: Path, name: str) -> Result:
    try:
        # NaN and infinities, which are not JSON, count as not measured.
        data = json.loads(path.read_text("utf-8"), parse_constant=lambda _: None)
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}; name a file that `mobiedit bench` wrote") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not JSON: name a file that `mobiedit bench` wrote") from error
    try:
        return _result(data, name, str(path))
    except ValueError as error:
        raise RequestError(f"{path} is not a result, {error}: name a file that `mobiedit bench` wrote") from error


def _result(data: Any, name: str, file: str) -> Result:  # noqa: ANN401 - any JSON value
    top = _typed(data, dict, "the file")
    for part in ("summary", "records"):
        if part not in top:
            raise ValueError(f"it has no {part!r}")
    summary = _typed(top["summary"], dict, "summary")
    metrics = {key: _metric(summary.get(key), f"summary.{key}") for key in SCORES}
    costs = {key: _spread(summary.get(key), f"summary.{key}") for key in COSTS}
    records = _typed(top["records"], list, "records")
    return Result(
        name=name,
        file=file,
        settings=dict(_flat(_part(top, "settings", dict))),
        further=dict(_flat(_part(top, "further", dict))),
        metrics={key: metric for key, metric in metrics.items() if metric},
        costs={key: spread for key, spread in costs.items() if spread},
        records=tuple(_record(record, f"records[{i}]") for i, record in enumerate(records)),
    )


def _metric(value: Any, where: str) -> Metric | None:  # noqa: ANN401
    if value is None:
        return None
    fields = _typed(value, dict, where)
    pre, post = (_number(fields.get(key), f"{where}.{key}") for key in ("pre", "post"))
    bounds = [_number(bound, f"{where}.ci95") for bound in _part(fields, "ci95", list)]
    low, high = bounds if len(bounds) == 2 else (None, None)
    interval = None if low is None or high is None else (low, high)
    return None if pre is None and post is None else Metric(pre, post, interval)


def _spread(value: Any, where: str) -> Spread | None:  # noqa: ANN401
    if value is None:
        return None
    fields = _typed(value, dict, where)
    median, largest = (_number(fields.get(key), f"{where}.{key}") for key in ("median", "max"))
    return None if median is None else Spread(median, median if largest is None else largest)


def _record(value: Any, where: str) -> Record:  # noqa: ANN401
    fields = _typed(value, dict, where)
    tokens, answer = (_part(fields, key, dict) for key in ("top_tokens", "answer"))
    return Record(
        identifier=str(fields.get("identifier", "")),
        prompt=_part(fields, "prompt", str),
        subject=_part(fields, "subject", str),
        target=_part(fields, "target", str),
        top_before=_tokens(tokens, "pre", f"{where}.top_tokens.pre"),
        top_after=_tokens(tokens, "post", f"{where}.top_tokens.post"),
        answer_before=_part(answer, "pre", str),
        answer_after=_part(answer, "post", str),
        failures=tuple(str(failure) for failure in _part(fields, "failures", list)),
        error=_part(fields, "error", str),
        looks=_looks(fields, f"{where}.looks"),
    )


def _tokens(fields: dict[str, Any], key: str, where: str) -> Tokens:
    pairs = [_typed(pair, list, where) for pair in _part(fields, key, list)]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{where} does not hold pairs of a token and its probability")
    return tuple((str(token), _number(probability, where)) for token, probability in pairs)


def _looks(fields: dict[str, Any], where: str) -> tuple[Look, ...]:
    looks = []
    for value in _part(fields, "looks", list):
        numbers = [_number(number, where) for number in _typed(value, list, where)]
        if len(numbers) != 3:
            raise ValueError(f"{where} does not hold forwards, loss and the target's probability")
        forwards, loss, probability = numbers
        if forwards is not None and loss is not None and probability is not None:
            looks.append(Look(int(forwards), loss, probability))
    return tuple(sorted(looks, key=lambda look: look.forwards))


def _part(fields: dict[str, Any], key: str, kind: type[_T]) -> _T:
    """Return a field that may be missing or null, which makes it empty."""
    value = fields.get(key)
    return kind() if value is None else _typed(value, kind, key)


def _typed(value: Any, kind: type[_T], where: str) -> _T:  # noqa: ANN401
    if not isinstance(value, kind):
        raise ValueError(f"{where} is no {({dict: 'object', list: 'list', str: 'text'})[kind]}")
    return value


def _number(value: Any, where: str) -> float | None:  # noqa: ANN401
    if value is None:
        return None
    if not isinstance(value, int | float):
        raise ValueError(f"{where} is no number")
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _flat(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested data under dotted names, as text."""
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", _text(value)


def _text(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
