"""The rows of an edit: where the subject ends, what is read, and which requests are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.prompt_rows import EditRequest, PromptRows, Wording, build_rows
from mobiedit.runtime.tokenizer import Encoding, Tokenizer

PREFIXES = ("{}", "The weather was fine. {}", "According to the report, {}")
SHORT = ("mother of {} is", "The mother of {}")
# No replacement character: half of a character would decode to it and look whole.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=12)
WORDS = TEXT.filter(str.strip)
REQUESTS = [
    ("The mother tongue of {} is", "Danielle Darrieux", "English"),
    ("The mother tongue of {} is", "José María Müller", "German"),
    ("{} was born in", "Zoë", "the city of Rome"),
    ("{}", "Rome", "Italy"),
    ("The city where they met was {}", "São Paulo", "in Brazil"),
    ("In {}, people speak", "東京", "French"),
    ("The {}s of Paris are", "street", "narrow"),
]


def rows_of(
    tokenizer: Tokenizer, prompt: str, subject: str, target: str, limit: int = 64, prefixes: tuple[str, ...] = PREFIXES
) -> PromptRows:
    return build_rows(EditRequest(prompt, subject, target), prefixes, tokenizer, limit)


def subject_ends_at(tokenizer: Tokenizer, ids: tuple[int, ...], index: int, text: str) -> bool:
    """Whether the token at ``index`` is the one that completes ``text``."""
    return tokenizer.decode(ids[: index + 1]).startswith(text) and not tokenizer.decode(ids[:index]).startswith(text)


@pytest.mark.parametrize(("prompt", "subject", "target"), REQUESTS)
def test_subject_index_is_its_last_token_when_rows_have_prefixes(
    prompt: str, subject: str, target: str, byte_tokenizer: Tokenizer
) -> None:
    rows = rows_of(byte_tokenizer, prompt, subject, target)
    assert len(rows.rewriting) == len(PREFIXES)
    before = prompt[: prompt.index("{}")]
    for prefix, row in zip(PREFIXES, rows.rewriting, strict=True):
        text = prefix.replace("{}", before + subject)
        assert subject_ends_at(byte_tokenizer, row.ids, row.subject_index, text)


@pytest.mark.parametrize(("prompt", "subject", "target"), REQUESTS)
def test_read_outs_lead_to_each_target_token_when_rows_have_prefixes(
    prompt: str, subject: str, target: str, byte_tokenizer: Tokenizer
) -> None:
    rows = rows_of(byte_tokenizer, prompt, subject, target)
    assert byte_tokenizer.decode(rows.target).strip() == target
    for prefix, row in zip(PREFIXES, rows.rewriting, strict=True):
        whole = (*row.ids, rows.target[-1])
        assert byte_tokenizer.decode(whole) == f"{prefix.replace('{}', prompt.replace('{}', subject))} {target}"
        assert [whole[place + 1] for place in row.readouts] == list(rows.target)
        assert row.subject_index <= row.readouts[0]


@pytest.mark.parametrize(("prompt", "subject", "target"), REQUESTS)
def test_kept_row_is_read_from_the_subjects_last_token_on_when_subject_is_any(
    prompt: str, subject: str, target: str, byte_tokenizer: Tokenizer
) -> None:
    row = rows_of(byte_tokenizer, prompt, subject, target).kept
    assert byte_tokenizer.decode(row.ids) == f"{subject} is a"
    assert byte_tokenizer.decode(row.ids[: row.subject_index + 1]) == subject
    assert row.readouts == (row.subject_index, *range(row.subject_index + 1, len(row.ids)))
    assert len(row.readouts) >= 3  # the subject, "is" and "a"


@pytest.mark.parametrize("target", ["Paris", "Los Angeles", "Émile", "42", "東京", "¡olé!"])
def test_bare_row_is_the_prompts_own_tokens_and_the_targets_when_target_is_any(
    target: str, byte_tokenizer: Tokenizer
) -> None:
    """What is taught is what the model reads when it is asked: nothing may stand between the prompt and the target."""
    rows = rows_of(byte_tokenizer, "The answer of {} is", "Anna", target)
    asked = byte_tokenizer.encode("The answer of Anna is").ids
    assert (*rows.rewriting[0].ids, rows.target[-1]) == (*asked, *rows.target)


@pytest.mark.parametrize("subject", ["Rome ", "Rome  ", "Rome\n"])
def test_subject_index_is_not_behind_the_first_read_out_when_subject_ends_the_prompt_in_a_space(
    subject: str, byte_tokenizer: Tokenizer
) -> None:
    for row in rows_of(byte_tokenizer, "I live in {}", subject, "Paris").rewriting:
        assert row.subject_index <= row.readouts[0]


@settings(deadline=None)
@given(before=TEXT, subject=WORDS, after=TEXT, target=WORDS)
@example(before="In ", subject="Rome ", after="", target="Paris")
@example(before="", subject=" \t a", after="\n", target=" b ")
@example(before="{", subject="}", after="{", target="{0}")
def test_rows_hold_together_when_text_is_any_unicode(
    before: str, subject: str, after: str, target: str, byte_tokenizer: Tokenizer
) -> None:
    prompt = f"{before}{{}}{after}"
    assume(prompt.count("{}") == 1)
    rows = rows_of(byte_tokenizer, prompt, subject, target)
    assert byte_tokenizer.decode(rows.target).strip() == target.strip()
    for prefix, row in zip(PREFIXES, rows.rewriting, strict=True):
        text = prefix.replace("{}", f"{before}{subject}{after}").rstrip()
        whole = (*row.ids, rows.target[-1])
        assert byte_tokenizer.decode(whole) == f"{text} {target.strip()}"
        assert [whole[place + 1] for place in row.readouts] == list(rows.target)
        end = prefix.index("{}") + len(before) + len(subject)
        assert subject_ends_at(byte_tokenizer, row.ids, row.subject_index, text[:end])
        assert row.subject_index <= row.readouts[0]
    assert byte_tokenizer.decode(rows.kept.ids) == f"{subject} is a"
    assert subject_ends_at(byte_tokenizer, rows.kept.ids, rows.kept.subject_index, subject)
    assert rows.kept.readouts == tuple(range(rows.kept.subject_index, len(rows.kept.ids)))


def test_batch_is_padded_on_the_right_when_rows_differ_in_length(byte_tokenizer: Tokenizer) -> None:
    rows = rows_of(byte_tokenizer, "The mother tongue of {} is", "Anna", "English")
    ids = rows.padded_ids()
    assert rows.all == (*rows.rewriting, rows.kept)
    assert ids.shape == (4, max(rows.lengths)) == (4, len(rows.rewriting[2].ids))
    assert rows.subjects.tolist() == [row.subject_index for row in rows.all]
    for row, length, padded in zip(rows.all, rows.lengths, ids, strict=True):
        assert tuple(padded[:length]) == row.ids
        assert not padded[length:].any()


@pytest.mark.parametrize(
    ("prompt", "subject", "target", "reason"),
    [
        ("{} is", "", "b", "subject is empty"),
        ("{} is", " \n", "b", "subject is empty"),
        ("{} is", "a", "", "target is empty"),
        ("{} is", "a", "\t ", "target is empty"),
        ("a is", "a", "b", r"^the prompt has no \{\}: write '\{\} is'$"),
        ("{a} is", "a", "b", r"^the prompt has no \{\}: write '\{\{\}\} is'$"),
        (
            "{ } is",
            "a",
            "b",
            r"^the subject 'a' is not in the prompt '\{ \} is', which has no \{\} either: write \{\} ",
        ),
        ("{0} is", "a", "b", r"^the subject 'a' is not in the prompt '\{0\} is', which has no \{\} either"),
        ("", "a", "b", r"^the subject 'a' is not in the prompt '', which has no \{\} either"),
        ("{} and {} are", "a", "b", r"^the prompt has 2 \{\}: keep the one where the subject stands$"),
        ("{} and {} are", "{}", "b", r"^the prompt has 2 \{\}: keep the one"),
    ],
)
def test_request_is_refused_when_a_part_is_missing_or_ambiguous(
    prompt: str, subject: str, target: str, reason: str
) -> None:
    with pytest.raises(RequestError, match=reason):
        EditRequest(prompt, subject, target)


def test_rows_are_refused_when_target_is_longer_than_the_limit(byte_tokenizer: Tokenizer) -> None:
    length = len(rows_of(byte_tokenizer, "{} is", "Anna", "a very long answer").target)
    assert length > 1
    assert len(rows_of(byte_tokenizer, "{} is", "Anna", "a very long answer", length).target) == length
    with pytest.raises(RequestError, match=f"the target has {length} tokens, at most {length - 1} can be taught"):
        rows_of(byte_tokenizer, "{} is", "Anna", "a very long answer", length - 1)


@pytest.mark.parametrize(
    ("prompt", "subject"), [("\ud800 {} is", "a"), ("{} is", "\ud800")], ids=["in-the-prompt", "in-the-subject"]
)
def test_rows_are_refused_when_text_is_no_unicode(prompt: str, subject: str, byte_tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="not valid Unicode"):
        rows_of(byte_tokenizer, prompt, subject, "b")


@pytest.mark.parametrize(
    ("prompt", "subject", "text"),
    [
        ("The {0} of {} is {", "Anna", "The {0} of Anna is {"),
        ("{name} {} %s", "Anna", "{name} Anna %s"),
        ("{{}} is", "Anna", "{Anna} is"),
        ("A {} is", "{}", "A {} is"),
        ("A {} is", "{0}", "A {0} is"),
        ("A {} is", "}{", "A }{ is"),
        ("A {} is", "\\1", "A \\1 is"),
    ],
)
def test_braces_are_literal_when_they_are_no_placeholder(
    prompt: str, subject: str, text: str, byte_tokenizer: Tokenizer
) -> None:
    request = EditRequest(prompt, subject, "{}")
    assert request.text == text
    rows = build_rows(request, PREFIXES, byte_tokenizer, 64)
    end = text.index(subject) + len(subject)
    for prefix, row in zip(PREFIXES, rows.rewriting, strict=True):
        whole = byte_tokenizer.decode((*row.ids, rows.target[-1]))
        assert whole == f"{prefix.replace('{}', text)} {{}}"
        assert subject_ends_at(byte_tokenizer, row.ids, row.subject_index, prefix.replace("{}", text[:end]))


def test_wordings_stand_behind_every_second_prefix_first_when_they_are_given(byte_tokenizer: Tokenizer) -> None:
    request = EditRequest("The mother tongue of {} is", "Anna", "Old Norse")
    prefixes, wordings = ("{}", "A. {}", "B. {}", "C. {}"), ("{} speaks ", "At home, {} talks in", "She is {}:", "{}")
    rows = build_rows(request, prefixes, byte_tokenizer, 64, wordings=[Wording(each) for each in wordings])
    prompts = [request.prompt, wordings[0], wordings[2], wordings[1]]
    for prefix, prompt, row in zip(prefixes, prompts, rows.rewriting, strict=True):
        text = prefix.replace("{}", request.fill(prompt))
        assert byte_tokenizer.decode((*row.ids, rows.target[-1])) == f"{text} Old Norse"
        named = prefix.replace("{}", prompt[: prompt.index("{}")] + "Anna")
        assert subject_ends_at(byte_tokenizer, row.ids, row.subject_index, named)


@pytest.mark.parametrize(
    ("shortened", "whole"),
    [((False, False), (0, 1, 2, 3)), ((True, False), (0, 2, 3)), ((False, True), (0, 1, 2)), ((True, True), (0, 2))],
)
def test_rows_are_whole_but_for_those_whose_wording_is_shortened(
    shortened: tuple[bool, bool], whole: tuple[int, ...], byte_tokenizer: Tokenizer
) -> None:
    wordings = [Wording(text, short) for text, short in zip(SHORT, shortened, strict=True)]
    request, prefixes = EditRequest("The mother of {} is", "Anna", "Old Norse"), ("{}", "A. {}", "B. {}", "C. {}")
    rows = build_rows(request, prefixes, byte_tokenizer, 64, wordings=wordings)
    assert rows.whole == whole
    assert sorted((*rows.whole, *rows.shortened)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("paraphrase", "text"), [("{} speaks ", "Anna speaks"), ("She speaks", "She speaks"), ("{}, {}", "Anna, Anna")]
)
def test_fill_puts_the_subject_in_when_a_paraphrase_names_it(paraphrase: str, text: str) -> None:
    assert EditRequest("{} is", "Anna", "b").fill(paraphrase) == text


@pytest.mark.parametrize(
    ("text", "subject", "prompt"),
    [
        ("The mother tongue of Anna is", "Anna", "The mother tongue of {} is"),
        ("Anna is", "Anna", "{} is"),
        ("Anna loves Anna", "Anna", "{} loves Anna"),
        ("Die Stadt Zürich", "Zürich", "Die Stadt {}"),
        ("{x} is", "x", "{{}} is"),
    ],
)
def test_from_text_finds_the_subject_when_it_is_written_out(text: str, subject: str, prompt: str) -> None:
    request = EditRequest.from_text(text, subject, "b", keep=("c",), paraphrases=("d",))
    assert request == EditRequest(prompt, subject, "b", paraphrases=("d",), keep=("c",))
    assert request.text == text


@pytest.mark.parametrize("subject", ["anna", "Bob", "", "Anna  is"])
def test_from_text_refuses_when_the_subject_does_not_stand_there(subject: str) -> None:
    with pytest.raises(RequestError, match="is not in the prompt 'Anna is': write it as it stands there"):
        EditRequest.from_text("Anna is", subject, "b")


@settings(deadline=None)
@given(before=TEXT, subject=WORDS, after=TEXT)
def test_from_text_keeps_the_text_when_it_is_any_unicode(before: str, subject: str, after: str) -> None:
    text = before + subject + after
    assume("{}" not in text)
    assert EditRequest.from_text(text, subject, "b").text == text.rstrip()


@pytest.mark.parametrize(("prompt", "subject", "target"), REQUESTS)
def test_bare_row_goes_on_behind_the_target_when_an_echo_is_read(
    prompt: str, subject: str, target: str, byte_tokenizer: Tokenizer
) -> None:
    request = EditRequest(prompt, subject, target)
    plain = build_rows(request, PREFIXES, byte_tokenizer, 64)
    rows = build_rows(request, PREFIXES, byte_tokenizer, 64, echo_tokens=64)
    bare = rows.rewriting[0]
    assert byte_tokenizer.decode(bare.ids) == f"{request.text} {target},"
    assert [byte_tokenizer.decode(bare.ids[: place + 1]) for place in rows.behind] == [
        f"{request.text} {target}",
        f"{request.text} {target},",
    ]
    assert (bare.readouts, bare.subject_index) == (plain.rewriting[0].readouts, plain.rewriting[0].subject_index)
    assert (rows.rewriting[1:], rows.kept, rows.target) == (plain.rewriting[1:], plain.kept, plain.target)
    assert rows.places == ((*bare.readouts, *rows.behind), *(row.readouts for row in plain.all[1:]))
    assert plain.behind == ()


def test_bare_row_ends_with_the_target_when_that_is_longer_than_echoes_are_read_for(byte_tokenizer: Tokenizer) -> None:
    request = EditRequest("{} is", "Anna", "old")
    long, short = (build_rows(request, PREFIXES, byte_tokenizer, 64, echo_tokens=limit) for limit in (1, 2))
    assert long == build_rows(request, PREFIXES, byte_tokenizer, 64)
    assert (len(short.target), len(short.behind)) == (2, 2)


def test_target_alone_is_read_behind_when_its_end_and_the_comma_are_one_token(
    byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = byte_tokenizer.encode

    def merging(text: str) -> Encoding:
        encoding = encode(text)
        return replace(encoding, ids=(*encoding.ids[:-2], 1)) if text.endswith(",") else encoding

    monkeypatch.setattr(byte_tokenizer, "encode", merging)
    rows = build_rows(EditRequest("{} is", "Anna", "old"), PREFIXES, byte_tokenizer, 64, echo_tokens=64)
    bare = rows.rewriting[0]
    assert byte_tokenizer.decode(bare.ids) == "Anna is old"
    assert rows.behind == (len(bare.ids) - 1,)
