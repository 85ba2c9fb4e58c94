"""Batches as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobiedit.runtime.batch_file import parse_batch, read_batch
from mobiedit.runtime.errors import MobiEditError, RequestError
from mobiedit.runtime.prompt_rows import EditRequest

LINE = {"prompt": "The capital of {} is", "subject": "France", "target": "Rome"}
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def line(**changes: object) -> bytes:
    return json.dumps({**LINE, **changes}).encode()


@given(
    st.lists(
        st.builds(
            EditRequest,
            texts.map(lambda text: text.replace("{}", "") + "{}"),
            texts.filter(str.strip),
            texts.filter(str.strip),
            st.lists(texts, max_size=3).map(tuple),
            st.lists(texts, max_size=3).map(tuple),
        ),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from(["", "\n", "\r\n", "\n\n \n"]),
    st.booleans(),
)
def test_requests_come_back_when_they_were_written_as_lines(
    requests: list[EditRequest], end: str, ascii_only: bool
) -> None:
    lines = "\n".join(json.dumps(vars(request), ensure_ascii=ascii_only) for request in requests)
    assert parse_batch((lines + end).encode(), "f") == tuple(requests)


@given(
    st.binary(max_size=200) | st.lists(st.sampled_from([b'{"prompt":', b"[", b"}", b'"', b"\n", b"1"])).map(b"".join)
)
def test_bytes_are_refused_in_one_line_when_they_are_any(data: bytes) -> None:
    with pytest.raises(MobiEditError) as caught:
        parse_batch(data, "f")
    assert str(caught.value).startswith("f")


def test_lines_of_exported_edits_are_taken_when_they_tell_more() -> None:
    more = {"edit_id": "ab", "created": "c", "method": "rome", "batch": None, "leverage": 1.0, "report": {}}
    more |= {"base_sha256": "0", "tool_version": "1", "optimizer": "gn", "vectors": {"key": "AAAA"}}
    (request,) = parse_batch(line(paraphrases=["{} has"], keep=["Oslo is"], **more), "f")
    assert request == EditRequest(**LINE, paraphrases=("{} has",), keep=("Oslo is",))


def test_line_separators_within_a_text_do_not_end_a_line() -> None:
    data = json.dumps({**LINE, "target": "a\u2028b\x85c"}, ensure_ascii=False).encode()
    assert parse_batch(b"\xef\xbb\xbf" + data, "f")[0].target == "a\u2028b\x85c"


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (b"", "is empty: take it out"),
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"prompt": "\xff"}', "is not UTF-8"),
        (b"[]", r"must be an object with prompt, subject and target, not \[\]"),
        (b'{"prompt": "a", "prompt": "b"}', "a key is there twice"),
        (line(subjct="x"), "has 'subjct', which no request has"),
        (b'{"prompt": "{} is", "subject": "x"}', "has no 'target'"),
        (line(target=5), "'target' must be a text, not 5"),
        (line(target=None), "'target' must be a text"),
        (line(keep="Oslo is"), "'keep' must be a list of texts, not 'Oslo is'"),
        (line(paraphrases=[1]), "'paraphrases' must be a list of texts"),
        (line(prompt="The capital is"), "subject 'France' is not in the prompt"),
        (line(subject=" "), "subject is empty"),
    ],
)
def test_line_is_named_when_it_is_no_request(second: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_bytes(line() + b"\n" + second + b"\n" + line(subject="Spain"))
    with pytest.raises(RequestError, match=rf"facts\.jsonl, line 2.*{message}"):
        read_batch(str(path))


def test_file_is_refused_when_it_is_empty_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"\n \n")
    with pytest.raises(RequestError, match="empty is empty: give a JSON object"):
        read_batch(str(tmp_path / "empty"))
    for path in (tmp_path, tmp_path / "none", tmp_path / "empty" / "below", "a\0b"):
        with pytest.raises(RequestError, match="is not a file"):
            read_batch(str(path))
