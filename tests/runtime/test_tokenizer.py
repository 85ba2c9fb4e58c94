"""Tokens and their spans on text of all kinds, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from mobiedit.runtime.errors import BundleError, RequestError
from mobiedit.runtime.tokenizer import Encoding, Tokenizer

KNOWN = Encoding((7, 8, 9, 10), ((0, 3), (3, 8), (8, 8), (8, 10)))


@pytest.mark.parametrize(
    ("end", "index"), [(1, 0), (3, 0), (4, 1), (8, 1), (9, 3), (99, 3)], ids=lambda value: str(value)
)
def test_last_token_before_starts_before_the_end_when_tokens_are_wide_or_empty(end: int, index: int) -> None:
    assert KNOWN.last_token_before(end) == index


def test_last_token_before_has_text_of_its_own_when_tokens_without_any_follow() -> None:
    assert Encoding((7, 8, 0), ((0, 3), (3, 3), (0, 0))).last_token_before(9) == 0


@pytest.mark.parametrize(("start", "index"), [(0, 0), (2, 0), (3, 1), (7, 1), (8, 3), (9, 3)])
def test_first_token_from_ends_behind_the_start_when_tokens_are_wide_or_empty(start: int, index: int) -> None:
    assert KNOWN.first_token_from(start) == index


@pytest.mark.parametrize("start", [10, 99])
def test_first_token_from_is_the_length_when_no_token_follows(start: int) -> None:
    assert KNOWN.first_token_from(start) == 4


@pytest.mark.parametrize(
    ("text", "end", "covered"),
    [
        ("The mother tongue of Anna is", 25, "The mother tongue of Anna"),
        ("Müller is", 6, "Müller"),
        ("é is", 1, "é"),
        ("in 東京 it", 5, "in 東京"),
        ("in 東京 it", 4, "in 東"),
        ("a 🙂", 3, "a 🙂"),
        ("Zoë", 3, "Zoë"),
    ],
)
def test_last_token_before_is_the_last_byte_when_characters_have_several(
    text: str, end: int, covered: str, byte_tokenizer: Tokenizer
) -> None:
    encoding = byte_tokenizer.encode(text)
    last = encoding.last_token_before(end)
    assert byte_tokenizer.decode(encoding.ids[: last + 1]) == covered
    assert byte_tokenizer.decode(encoding.ids[:last]) != covered


@pytest.mark.parametrize(
    ("text", "start", "rest"),
    [("in 東京 it", 3, "東京 it"), ("in 東京 it", 4, "京 it"), ("Müller is", 7, " is"), ("Müller is", 1, "üller is")],
)
def test_first_token_from_is_the_first_byte_when_characters_have_several(
    text: str, start: int, rest: str, byte_tokenizer: Tokenizer
) -> None:
    encoding = byte_tokenizer.encode(text)
    assert byte_tokenizer.decode(encoding.ids[encoding.first_token_from(start) :]) == rest


@settings(deadline=None)
@given(text=st.text(min_size=1))
@example(text="Zoë im Café, 東京 🙂\n\n\t  end ")
@example(text="\x00")
def test_decode_gives_the_text_back_when_it_is_any_unicode(text: str, byte_tokenizer: Tokenizer) -> None:
    encoding = byte_tokenizer.encode(text)
    assert byte_tokenizer.decode(encoding.ids) == text


@settings(deadline=None)
@given(text=st.text(min_size=1))
def test_spans_cover_the_text_in_order_when_it_is_any_unicode(text: str, byte_tokenizer: Tokenizer) -> None:
    encoding = byte_tokenizer.encode(text)
    assert len(encoding.spans) == len(encoding.ids)
    assert {i for start, stop in encoding.spans for i in range(start, stop)} == set(range(len(text)))
    assert list(encoding.spans) == sorted(encoding.spans)


def test_decode_leaves_special_tokens_out_when_they_are_among_the_ids(byte_tokenizer: Tokenizer) -> None:
    ids = byte_tokenizer.encode("a b").ids
    assert byte_tokenizer.decode([0, *ids, 0]) == "a b"


def test_encode_adds_and_drops_nothing_when_the_file_asks_for_it(tmp_path: Path) -> None:
    core = tokenizers.Tokenizer(models.WordLevel({"<s>": 0, "one": 1, "two": 2, "three": 3}, unk_token="<s>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    core.enable_padding(length=8)
    core.enable_truncation(2)
    core.save(str(tmp_path / "tokenizer.json"))
    encoding = Tokenizer(tmp_path / "tokenizer.json").encode("one two three")
    assert encoding == Encoding((1, 2, 3), ((0, 3), (4, 7), (8, 13)))


def _word_level() -> models.Model:
    return models.WordLevel({"[UNK]": 0, "known": 1, "words": 2}, unk_token="[UNK]")


def _word_piece() -> models.Model:
    return models.WordPiece({"[UNK]": 0, "known": 1, "words": 2}, unk_token="[UNK]")


def _unigram() -> models.Model:
    return models.Unigram([("<unk>", 0.0), ("known", -1.0), ("words", -1.0)], unk_id=0)


@pytest.mark.parametrize("model", [_word_level, _word_piece, _unigram])
def test_encode_refuses_by_name_when_a_word_is_not_in_the_vocabulary(
    model: Callable[[], models.Model], tmp_path: Path
) -> None:
    core = tokenizers.Tokenizer(model())
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.encode("known words").ids == (1, 2)
    with pytest.raises(RequestError, match="does not know 'Zürich': write it another way"):
        tokenizer.encode("known Zürich words")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no tokens: give at least one word"),
        ("\ud800", "not valid Unicode"),
        ("a \udfff b", "not valid Unicode"),
    ],
)
def test_encode_refuses_when_text_is_empty_or_no_unicode(text: str, reason: str, byte_tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match=reason):
        byte_tokenizer.encode(text)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1, 2]", b"no JSON", b"\xff\xfe"])
def test_open_refuses_when_file_is_no_tokenizer(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"^tokenizer\.json is not a tokenizer .*: export the bundle again$"):
        Tokenizer(tmp_path / "tokenizer.json")


def test_open_refuses_when_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"^tokenizer\.json is not a tokenizer"):
        Tokenizer(tmp_path / "tokenizer.json")
