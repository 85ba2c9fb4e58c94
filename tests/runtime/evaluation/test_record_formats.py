"""The three formats with all that real data has: texts, lists, lists of lists, and what is left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.evaluation import EvaluationRecord, Format, Question
from mobiedit.runtime.evaluation.record_formats import parse_record

Records = Callable[..., EvaluationRecord]


def test_counterfact_record_is_read(record: Records) -> None:
    assert record("counterfact") == EvaluationRecord(
        "7",
        Format.COUNTERFACT,
        "The mother tongue of Danielle Darrieux is",
        "Danielle Darrieux",
        "English",
        ("French",),
        ("Danielle Darrieux, a native speaker of",),
        (Question("The mother tongue of Victor Hugo is", ("French",)),),
    )


def test_zsre_record_is_read(record: Records) -> None:
    assert record("zsre") == EvaluationRecord(
        "0",
        Format.ZSRE,
        "Which city was the birthplace of Anna?",
        "Anna",
        "Rome",
        ("Paris", "Lyon"),
        ("In what city was Anna born?",),
        (Question("Anna works as", ("a teacher", "a cook"), "Relation_Specificity"),),
        {
            "Reasoning": (
                Question("In which country was Anna born?", ("Italy",)),
                Question("The language of Anna's birthplace is", ("Italian", "the Italian one")),
            ),
            "Subject_Aliasing": (Question("The girl was born in", ("Rome",)),),
        },
    )


def test_personal_record_is_read(record: Records) -> None:
    assert record("personal") == EvaluationRecord(
        "dentist-1",
        Format.PERSONAL,
        "My dentist's name is",
        "dentist",
        "Dr. Chen",
        (),
        ("The name of my dentist is", "I have my teeth seen to by"),
        (Question("My plumber's name is"), Question("The capital of France is")),
        {"inference": (Question("When a tooth hurts I call", ("Dr. Chen", "Chen")),)},
    )


@pytest.mark.parametrize("answers", ["Paris", ["Paris"], [["Paris"]], [["Paris", "Rome"], []], ["Paris", "", None]])
@pytest.mark.parametrize("record_format", ["zsre", "personal"])
def test_old_answers_are_those_but_the_target(record: Records, record_format: str, answers: Any) -> None:
    assert record(record_format, ground_truth=answers, target_new="Rome").old == ("Paris",)


@pytest.mark.parametrize("missing", [None, "", []])
def test_zsre_record_is_read_when_all_but_the_fact_is_left_out(record: Records, missing: Any) -> None:
    names = ("ground_truth", "rephrase_prompt", "locality", "portability", "cond")
    bare = record("zsre", **dict.fromkeys(names, missing))
    assert (bare.old, bare.paraphrases, bare.neighbours, bare.portability) == ((), (), (), {})


@pytest.mark.parametrize("questions", [[], None, {}, [{"prompt": "Who?", "ground_truth": []}], [{"prompt": ""}]])
def test_zsre_kind_is_left_out_when_it_has_no_answered_question(record: Records, questions: Any) -> None:
    assert record("zsre", portability={"Reasoning": questions}).portability == {}


def test_neighbour_without_an_answer_stays(record: Records) -> None:
    assert record("zsre", locality={"a": [{"prompt": "Who?"}]}).neighbours == (Question("Who?", kind="a"),)


def test_personal_record_is_read_when_all_but_the_fact_is_left_out(record: Records) -> None:
    bare = record("personal", paraphrases=None, unrelated=None, inference=None)
    assert (bare.paraphrases, bare.neighbours, bare.portability) == ((), (), {})


@pytest.mark.parametrize(("subject", "found"), [("ANNA", "Anna"), ("anna", "Anna"), ("A", "A")])
def test_subject_is_spelled_as_in_the_prompt(record: Records, subject: str, found: str) -> None:
    assert record("zsre", subject=subject).subject == found


def test_identifier_is_the_place_when_none_is_given(record: Records, raw: Callable[..., dict[str, Any]]) -> None:
    assert parse_record(raw("personal", id=None), Format.PERSONAL, 12, "record 12").identifier == "12"
    assert record("personal", id=0).identifier == "0"


@pytest.mark.parametrize(
    ("record_format", "changes", "message"),
    [
        ("counterfact", {"prompt": None}, "record 0 has no 'prompt': give it, or name the file's right format"),
        ("counterfact", {"subject": "  "}, "record 0 has no 'subject'"),
        ("counterfact", {"target_new": 5}, "record 0: 'target_new' must be a text, not 5"),
        ("counterfact", {"target_new": "\ud800"}, "record 0: 'target_new' is not valid Unicode"),
        ("counterfact", {"ground_truth": None}, "record 0: 'ground_truth' is missing or is the target"),
        ("counterfact", {"ground_truth": "English"}, "record 0: 'ground_truth' is missing or is the target"),
        ("counterfact", {"locality_ground_truth": None}, "record 0 has no 'locality_ground_truth'"),
        ("counterfact", {"rephrase_prompt": {"a": 1}}, "record 0: 'rephrase_prompt' must be a text"),
        ("zsre", {"subject": "Bertha"}, "record 0: the subject 'Bertha' is not in the prompt"),
        ("zsre", {"prompt": "{} Anna {}"}, "record 0: the prompt has 3 {}"),
        ("zsre", {"locality": ["a"]}, "record 0: locality must be an object"),
        ("zsre", {"locality": {"kind": ["a"]}}, r"record 0: locality: kind\[0\] must be an object"),
        ("zsre", {"portability": {"kind": [{"prompt": 1}]}}, r"record 0: portability: kind\[0\]: 'prompt' must be"),
        ("personal", {"paraphrases": [{}]}, "record 0: 'paraphrases' must be a text"),
        ("personal", {"unrelated": [{}]}, r"record 0: unrelated\[0\] has no 'prompt'"),
        ("personal", {"inference": {"prompt": "Who?"}}, "record 0: 'inference' has no 'answers'"),
        ("personal", {"inference": "Who?"}, r"record 0: inference\[0\] must be an object"),
    ],
)
def test_record_is_refused_by_field_when_it_is_bad(
    record: Records, record_format: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        record(record_format, **changes)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("Anna"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["prompt", "answers"]), inner),
    max_leaves=6,
)
names = st.sampled_from(["subject", "prompt", "target_new", "ground_truth", "rephrase_prompt", "locality"])
more_names = st.sampled_from(
    ["portability", "paraphrases", "unrelated", "inference", "locality_prompt", "case_id", "id"]
)


@settings(deadline=None)
@given(st.dictionaries(names | more_names, values) | values, st.sampled_from(Format))
def test_any_json_is_read_or_refused_with_its_place(fields: Any, record_format: Format) -> None:
    try:
        parsed = parse_record(fields, record_format, 3, "record 3")
    except RequestError as error:
        message = str(error)
    else:
        message = "record 3"
        assert parsed.subject in parsed.prompt
        assert parsed.target.strip()
        assert parsed.target not in parsed.old
        json.dumps([parsed.identifier, parsed.prompt, parsed.target], ensure_ascii=False).encode()
    assert message.startswith("record 3")
