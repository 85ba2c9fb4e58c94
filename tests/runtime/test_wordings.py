"""Wordings that need no knowledge of a language: which words are left out, and that the subject never is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobiedit.runtime.prompt_rows import EditRequest, Wording
from mobiedit.runtime.wordings import shortened, wordings_of

PARTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{}"), max_size=40)


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        (
            "Which university did {} go to?",
            ["Which university did {}?", "university did {} go to?", "Which did {} go to?"],
        ),
        ("The mother tongue of {} is", ["The mother tongue of {}", "tongue of {} is", "mother of {} is"]),
        ('Who is the author of "{}"', ['author of "{}"', 'is author "{}"']),
        ("What is the name of {}'s wife?", ["the name of {}'s wife?", "What the of {}'s wife?"]),
        ("Who is {}'s mother?", []),
        ("{} was born in", []),
        ("{}", []),
        ("東京の{}は", []),
    ],
)
def test_words_are_left_out_when_there_are_some_to_spare(prompt: str, wanted: list[str]) -> None:
    assert [wording for wording in shortened(prompt) if wording != prompt] == wanted


@given(PARTS, PARTS, st.integers(0, 5))
def test_wordings_name_the_subject_once_when_the_prompt_is_any(before: str, after: str, count: int) -> None:
    prompt = f"{before}{{}}{after}"
    wordings = wordings_of(EditRequest(prompt, "Anna", "old"), count)
    assert len(wordings) <= count
    assert len(set(wordings)) == len(wordings)
    for wording in wordings:
        assert wording.shortened
        assert wording.prompt.count("{}") == 1
        assert wording.prompt != prompt
        words, left = prompt.split(), wording.prompt.removesuffix("?").split()
        assert len(left) <= len(words)


def test_paraphrases_come_first_and_all_of_them_when_they_name_the_subject() -> None:
    given = ("{}'s job is", "Anna works as", "The woman is", "{} and {} are", "{} is")
    request = EditRequest("{} is", "Anna", "a baker", paraphrases=given)
    assert wordings_of(request, 1) == (Wording("{}'s job is"), Wording("{} works as"))
    long = EditRequest("The job of {} is", "Anna", "a baker", paraphrases=given[:1])
    wanted = (Wording("{}'s job is"), Wording("The job of {}", True), Wording("job of {} is", True))
    assert wordings_of(long, 3) == wanted


def test_a_shortened_prompt_is_whole_when_it_was_given_as_a_paraphrase() -> None:
    request = EditRequest("The job of {} is", "Anna", "a baker", paraphrases=("job of Anna is",))
    assert wordings_of(request, 2) == (Wording("job of {} is"), Wording("The job of {}", True))
