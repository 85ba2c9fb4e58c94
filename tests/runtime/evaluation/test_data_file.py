"""A data file: its format told from its fields, and one line for whatever is wrong with it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.evaluation import Format, read_records

Raw = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("name", ["counterfact", "zsre", "personal"])
def test_format_is_detected_when_it_is_not_given(name: str, raw: Raw, data_path: Callable[..., Path]) -> None:
    path = data_path(raw(name), raw(name))
    data = read_records(path)
    assert data.format is Format(name)
    assert (data.name, data.sha256) == ("data.json", hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(data.records) == 2
    assert data == read_records(path, Format(name))


def test_format_is_detected_when_the_first_record_lacks_its_marks(raw: Raw, data_path: Callable[..., Path]) -> None:
    bare = raw("zsre", locality=None, portability=None, cond=None)
    assert read_records(data_path(bare, raw("zsre"))).format is Format.ZSRE


def test_file_is_read_when_it_starts_with_a_byte_order_mark(raw: Raw, data_path: Callable[..., Path]) -> None:
    path = data_path(raw("zsre"))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_records(path).records) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"[{]", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'["\xff"]', "is not JSON"),
        (b"[]", "holds no list of records"),
        (b"{}", "holds no list of records"),
        (b'{"a": [1]}', "holds no list of records"),
        (b"[1, 2]", "has no field that tells its format: give one of"),
        (b'[{"prompt": "a"}]', "has no field that tells its format: give one of"),
        (b'[{"case_id": 1}, {"locality": {}}]', "could be counterfact and zsre: give one of"),
        (b'[{"case_id": 1}]', "record 0 of data.json has no 'prompt'"),
    ],
)
def test_file_is_refused_with_one_line_when_it_holds_something_else(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=message):
        read_records(path)


def test_bad_record_is_named_by_its_place(raw: Raw, data_path: Callable[..., Path]) -> None:
    with pytest.raises(RequestError, match=r"record 1 of data\.json: the subject 'Bertha' is not in the prompt"):
        read_records(data_path(raw("zsre"), raw("zsre", subject="Bertha")))


@pytest.mark.parametrize("name", ["missing.json", ".", "a\0b"])
def test_file_is_refused_when_it_is_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match="is not a file: give a JSON file"):
        read_records(tmp_path / name)
