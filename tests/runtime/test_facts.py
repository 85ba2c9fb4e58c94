"""Which edits teach the same fact."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from mobiedit.runtime.facts import FactKey, fact_key, without


@dataclass(frozen=True)
class Taught:
    fact: FactKey


def test_key_is_the_same_when_only_the_writing_differs() -> None:
    key = fact_key("The mother tongue of {} is", "Zoë Straße")
    assert key == fact_key("the  mother tongue\tof {} is ", "ZOE\N{COMBINING DIAERESIS} STRASSE")
    wide = "\N{FULLWIDTH LATIN CAPITAL LETTER T}"
    assert key == fact_key(f"{wide}he mother tongue of {{}} is", " zoë\N{NO-BREAK SPACE}straße")


def test_key_is_another_when_prompt_or_subject_is() -> None:
    keys = {fact_key(*pair) for pair in (("{} speaks", "Anna"), ("{} speak", "Anna"), ("{} speaks", "Hanna"))}
    assert len(keys) == 3
    assert fact_key("a b", "c") != fact_key("a", "b c")


@given(st.text(), st.text())
def test_key_of_a_key_is_itself_when_texts_are_any(prompt: str, subject: str) -> None:
    key = fact_key(prompt, subject)
    assert fact_key(*key) == key


def test_edits_of_other_facts_are_left_when_some_are_taken_out() -> None:
    first, other = (Taught(fact_key("{} is", name)) for name in ("Anna", "Bert"))
    assert without([first, other], [fact_key("{} is", "anna")]) == (other,)
    assert without([first, other], []) == (first, other)
