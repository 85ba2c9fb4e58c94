"""Edits as JSON lines: the same edit to the bit, or the number of the line that is wrong."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobiedit.runtime.edit_lines import from_lines, to_lines
from mobiedit.runtime.errors import MobiEditError, RequestError
from tests.runtime.small_edits import BASE, make_edit, same

SIZES = (3, 2)
TEXTS = st.text(st.characters(), max_size=9)
FLOATS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3)


def line(**changes: Any) -> bytes:
    """Return the line of an edit, with changes to its fields; None takes one out."""
    content = json.loads(to_lines((make_edit("a"),))) | changes
    return json.dumps({name: value for name, value in content.items() if value is not ...}).encode()


def read(data: bytes) -> Any:
    return from_lines(data, BASE, SIZES)


@settings(deadline=None)
@given(subject=TEXTS, target=TEXTS, keep=st.lists(TEXTS), numbers=FLOATS, leverage=st.floats(1e-300, 1e300))
def test_edit_is_the_same_to_the_bit_when_it_was_written_and_read(
    subject: str, target: str, keep: list[str], numbers: list[float], leverage: float
) -> None:
    edits = (
        make_edit(
            "a", subject=subject, target=target, keep=tuple(keep), key=np.array(numbers, np.float32), leverage=leverage
        ),
        make_edit("b", batch="x", report={"loss": 0.1, "texts": [subject]}),
    )
    text = to_lines(edits)
    assert text.isascii()
    assert text.count("\n") == 2
    found = read(text.encode())
    assert len(found) == 2
    assert all(map(same, found, edits))


def test_line_has_its_vectors_as_little_endian_float32() -> None:
    edit = make_edit("a", key=np.array([1, 2, -0.0], np.float32))
    vectors = json.loads(to_lines((edit,)))["vectors"]
    assert vectors["key"] == "AACAPwAAAEAAAACA"
    assert set(vectors) == {"key", "value", "delta", "direction"}


def test_line_has_the_request_alone_when_that_is_asked_for() -> None:
    content = json.loads(to_lines((make_edit("a", keep=("x",)),), requests_only=True))
    assert content == {
        "prompt": "The a of {} is",
        "subject": "France",
        "target": "Paris",
        "paraphrases": [],
        "keep": ["x"],
    }


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"{", "Expecting"),
        (b"[]", "not a JSON object"),
        (b"\xff", "utf-8"),
        (b'{"a": NaN}', "not a finite number"),
        (b'{"a": 1, "a": 2}', "a key is there twice"),
        (b"[" * 100_000, "nested too deeply"),
        (line(target=...), "target is missing"),
        (line(extra=1), "'extra' is unknown"),
        (line(prompt=1), "prompt is not a text"),
        (line(edit_id="a b"), "edit_id is not"),
        (line(created="today"), "today"),
        (line(leverage=0.0), "leverage is not"),
        (line(keep="x"), "keep is not a list"),
        (line(report=[]), "report is not a dictionary"),
        (line(vectors={}), "vectors are not key, value"),
        (line(vectors=dict.fromkeys(("key", "value", "delta", "direction"), "x")), "key is not base64"),
        (line(vectors=dict.fromkeys(("key", "value", "delta", "direction"), 1)), "key is not base64"),
        (line(vectors=dict.fromkeys(("key", "value", "delta", "direction"), "AAA=")), "key is not of 32-bit numbers"),
        (line(vectors=dict.fromkeys(("key", "value", "delta", "direction"), "")), "key is not a one-dimensional"),
        (line(vectors=dict.fromkeys(("key", "value", "delta", "direction"), "AADAfw==")), "NaN or infinity"),
    ],
)
def test_malformed_line_is_named_by_its_number(bad: bytes, message: str) -> None:
    data = line() + b"\n\n" + bad + b"\n" + line(edit_id="b")
    with pytest.raises(RequestError, match=f"^line 3: no edit of .*{message}.*nothing was imported$"):
        read(data)


def test_every_malformed_line_is_named() -> None:
    with pytest.raises(RequestError, match=r"^lines 1, 3: no edits of .*, the first \(not a JSON object\)"):
        read(b"1\n" + line() + b"\n{\n")
    with pytest.raises(RequestError, match=r" 20 and 5 more:"):
        read(b"1\n" * 25)


def test_edit_of_another_base_is_refused_with_the_way_to_teach_it() -> None:
    with pytest.raises(RequestError, match=r"another model or edit layer: .*mobiedit edit --batch"):
        from_lines(line(), "c" * 64, SIZES)
    with pytest.raises(RequestError, match="vectors of another model's shape"):
        from_lines(line(), BASE, (4, 2))


@settings(deadline=None)
@given(data=st.binary() | TEXTS.map(lambda text: json.dumps({"prompt": text}).encode()))
def test_any_bytes_are_refused_with_one_line(data: bytes) -> None:
    try:
        assert read(data) == ()
    except MobiEditError as error:
        message = str(error)
        assert "\n" not in message
        assert len(message) < 600
