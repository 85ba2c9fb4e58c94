"""The file of a benchmark: whole after every record, so that a run can end anywhere and go on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from reprlib import repr as short
from typing import Any

from ..errors import RequestError
from ..files import require_place, storage_errors, write_atomic
from .easyedit import easyedit_summary
from .measured import MeasuredRecord
from .summary import summarise, summarise_further


class ResultFile:
    """Settings, the records measured up to now, and their summary.

    Parameters
    ----------
    path
        The file; its folder must exist.
    settings
        What the figures depend on, as plain data.
    resume
        Go on after the records that the file holds; it may be missing. Their ``limit`` may have been another one, as
        long as the one now leaves none of them out.

    Raises
    ------
    RequestError
        When the file exists and ``resume`` is not set, is damaged, or is of other settings; or its folder is missing.
    StorageError
        When the disk refuses.
    """

    def __init__(self, path: Path, settings: dict[str, Any], *, resume: bool) -> None:
        require_place(path)
        self._path = path
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))  # as it would be read back
        self.records: list[MeasuredRecord] = []
        if path.exists() and path.stat().st_size:
            if not resume:
                raise RequestError(f"{path} exists: add --resume to go on, or name another file")
            self.records = self._read()
        self.document = self._write()

    def append(self, record: MeasuredRecord) -> None:
        """Put one more record into the file."""
        self.records.append(record)
        self.document = self._write()

    def _read(self) -> list[MeasuredRecord]:
        settings, records = read_result(self._path)
        was, now = dict(_leaves(settings)), dict(_leaves(self._settings))
        if (limit := now.get("limit")) is not None and limit < len(records):
            raise RequestError(
                f"{self._path} holds {len(records)} records, more than the limit of {limit}: "
                "ask for as many at least, or name another file"
            )
        for name in {**was, **now}:
            if name != "limit" and (name not in was or name not in now or was[name] != now[name]):
                raise RequestError(
                    f"{self._path} was measured with {name} {short(was.get(name))}, not {short(now.get(name))}: "
                    "ask for the same again, or name another file"
                )
        return records

    def _write(self) -> dict[str, Any]:
        document = {
            "settings": self._settings,
            "records": [record.to_dict() for record in self.records],
            **_figures(self.records),
        }
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomic(self._path, text.encode(), mode=None)
        return document


def read_result(path: Path) -> tuple[dict[str, Any], list[MeasuredRecord]]:
    """Return the settings and the records of a file.

    Raises
    ------
    RequestError
        When it is missing, damaged, or no result of a benchmark.
    StorageError
        When the disk refuses.
    """
    if not path.is_file():
        raise RequestError(f"{path} is missing: name a file that `mobiedit bench` wrote")
    with storage_errors(f"read {path}"):
        data = path.read_bytes()
    try:
        raw = json.loads(data)
        settings = {**raw["settings"]}  # TypeError when it is no mapping
        records = [MeasuredRecord.from_dict(record) for record in raw["records"]]
        _figures(records)  # figures that cannot be summed up are damage as well
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
        raise RequestError(f"{path} is damaged or no result of a benchmark: delete it, or name another file") from error
    return settings, records


def _figures(records: Sequence[MeasuredRecord]) -> dict[str, Any]:
    return {
        "summary": summarise(records),
        "further": summarise_further(records),
        "easyedit": easyedit_summary([record.easyedit for record in records]),
    }


def _leaves(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested data under dotted names."""
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
