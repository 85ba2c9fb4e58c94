"""A file of records: read it, and tell which format it has."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import RequestError
from ..files import storage_errors
from .record_formats import MARKS, is_easyedit, parse_record
from .records import EvaluationRecord, Format


@dataclass(frozen=True)
class DataFile:
    """The records of a file, and what names it."""

    name: str
    sha256: str
    format: Format
    records: tuple[EvaluationRecord, ...]

    def part(self, skip: int, limit: int | None) -> tuple[EvaluationRecord, ...]:
        """Return ``limit`` records behind the first ``skip``, or all of these.

        Raises
        ------
        RequestError
            When none is left.
        """
        if skip >= len(self.records):
            raise RequestError(f"{self.name} has {len(self.records)} records, {skip} are skipped: skip fewer")
        return self.records[skip:][:limit]


def read_records(path: Path, record_format: Format | None = None) -> DataFile:
    """Return the records of a JSON file.

    Parameters
    ----------
    record_format
        Told from the names of the fields when it is not given.

    Raises
    ------
    RequestError
        When the file is missing or not a list of records of one format; the message names the record and the field.
    StorageError
        When the file may not be read.
    """
    try:
        with storage_errors(f"read {path}"):
            data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError) as error:
        raise RequestError(f"{path} is not a file: give a JSON file of records") from error
    try:
        raw = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not JSON ({error}): give a list of records in UTF-8") from error
    if not isinstance(raw, list) or not raw:
        raise RequestError(f"{path} holds no list of records: give a JSON list of one or more objects")
    chosen = record_format or _detect(raw, path)
    records = tuple(parse_record(r, chosen, i, f"record {i} of {path.name}") for i, r in enumerate(raw))
    return DataFile(path.name, hashlib.sha256(data).hexdigest(), chosen, records)


def _detect(raw: list[object], path: Path) -> Format:
    if any(is_easyedit(record) for record in raw):
        return Format.EASYEDIT
    names = {name for record in raw if isinstance(record, dict) for name in record}
    found = [each for each, marks in MARKS.items() if marks & names]
    if len(found) != 1:
        known = ", ".join(each.value for each in Format)
        what = f"could be {' and '.join(found)}" if found else "has no field that tells its format"
        raise RequestError(f"{path.name} {what}: give one of {known}")
    return found[0]
