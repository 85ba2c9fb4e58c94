"""A record refuses what cannot be edited."""

from collections.abc import Callable

import pytest

from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.evaluation import EvaluationRecord, Format
from mobiedit.runtime.prompt_rows import EditRequest


def test_request_is_the_fact_alone(record: Callable[..., EvaluationRecord]) -> None:
    assert record("personal").request == EditRequest("My {}'s name is", "dentist", "Dr. Chen")


@pytest.mark.parametrize(
    ("prompt", "subject", "target", "message"),
    [
        ("My name is", "dentist", "Chen", "'dentist' is not in the prompt"),
        ("My dentist is", " ", "Chen", "subject is empty"),
        ("My dentist is", "dentist", " ", "target is empty"),
        ("My {} dentist is", "dentist", "Chen", "2 {}"),
    ],
)
def test_record_is_refused_when_it_cannot_be_edited(prompt: str, subject: str, target: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        EvaluationRecord("0", Format.ZSRE, prompt, subject, target)
