"""EasyEdit's requests and its metrics, by its own names."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobiedit.runtime import Bundle
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.evaluation import EvaluationRecord, Format, Question, read_records
from mobiedit.runtime.evaluation.cached_reader import CachedReader
from mobiedit.runtime.evaluation.easyedit import easyedit_metrics, easyedit_summary
from mobiedit.runtime.evaluation.fluency import n_gram_entropy
from mobiedit.runtime.evaluation.record_formats import parse_record

Models = Callable[[EvaluationRecord], tuple[CachedReader, CachedReader]]
REQUEST: dict[str, Any] = {
    "case_id": 4,
    "prompt": "The mother tongue of Anna is",
    "subject": "Anna",
    "target_new": "English",
    "ground_truth": "French",
    "rephrase_prompt": "Anna is a native speaker of",
    "locality": {
        "neighborhood": {"prompt": "The mother tongue of Victor Hugo is", "ground_truth": "French"},
        "distracting": {"prompt": ["Paris is in", "Rome is in"], "ground_truth": ["France", ["Italy", "the south"]]},
    },
    "portability": {"one_hop": {"prompt": "Anna was born in", "ground_truth": ["England", "London"]}},
}


def parse(**changes: Any) -> EvaluationRecord:
    return parse_record({**REQUEST, **changes}, Format.EASYEDIT, 0, "record 0")


# The loader


def test_request_is_read() -> None:
    assert parse() == EvaluationRecord(
        "4",
        Format.EASYEDIT,
        "The mother tongue of Anna is",
        "Anna",
        "English",
        ("French",),
        ("Anna is a native speaker of",),
        (
            Question("The mother tongue of Victor Hugo is", ("French",), "neighborhood"),
            Question("Paris is in", ("France",), "distracting"),
            Question("Rome is in", ("Italy", "the south"), "distracting"),
        ),
        {"one_hop": (Question("Anna was born in", ("England", "London")),)},
    )


def test_lists_of_objects_are_read_as_knowedit_has_them() -> None:
    record = parse(
        locality={"Relation_Specificity": [{"prompt": "Anna is", "ground_truth": [["a cook", "cook"]]}]},
        portability={"Reasoning": [{"prompt": "Anna speaks", "ground_truth": []}]},
    )
    assert record.neighbours == (Question("Anna is", ("a cook", "cook"), "Relation_Specificity"),)
    assert record.portability == {}


@pytest.mark.parametrize("as_list", [False, True])
def test_flat_fields_are_read(as_list: bool) -> None:
    flat = {"locality_prompt": "Paris is in", "locality_ground_truth": "France"}
    more: dict[str, Any] = {name: [value] if as_list else value for name, value in flat.items()}
    assert parse(locality={}, **more).neighbours == (Question("Paris is in", ("France",)),)


def test_prompt_is_left_out_when_it_is_none() -> None:
    record = parse(locality={"a": {"prompt": [None, "Rome is in"], "ground_truth": [None, "Italy"]}})
    assert record.neighbours == (Question("Rome is in", ("Italy",), "a"),)


def test_placeholder_is_no_old_answer() -> None:
    assert parse(ground_truth="<|endoftext|>").old == ()


@pytest.mark.parametrize("answers", ["Italy", ["Italy"], ["a", "b", "c"], None])
def test_request_is_refused_when_answers_are_not_as_many_as_prompts(answers: Any) -> None:
    with pytest.raises(RequestError, match=r"record 0: locality: a.*must be as long as each other"):
        parse(locality={"a": {"prompt": ["Paris is in", "Rome is in"], "ground_truth": answers}})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, Format.EASYEDIT),
        ({"locality": {}}, Format.EASYEDIT),
        ({"locality": {"a": [{"prompt": "Paris is in"}]}, "portability": {}, "case_id": None}, Format.ZSRE),
    ],
)
def test_format_is_told_by_prompts_under_a_name(
    changes: dict[str, Any], told: Format, data_path: Callable[..., Path]
) -> None:
    record = {name: value for name, value in {**REQUEST, **changes}.items() if value is not None}
    assert read_records(data_path(record)).format is told


def test_format_can_be_given_when_the_file_could_be_another(data_path: Callable[..., Path]) -> None:
    flat = {**REQUEST, "locality_prompt": "Paris is in", "locality_ground_truth": "France"}
    path = data_path({name: value for name, value in flat.items() if name not in ("locality", "portability")})
    assert read_records(path).format is Format.COUNTERFACT
    assert read_records(path, Format.EASYEDIT).format is Format.EASYEDIT


# The metrics


def test_metrics_have_their_names_and_values(models: Models) -> None:
    record = parse()
    now, before = models(record)
    found = easyedit_metrics(record, now, before, ())
    agreement = [
        float((now.read(q.prompt, q.answers[0]).best == before.read(q.prompt, q.answers[0]).best).mean())
        for q in record.neighbours
    ]
    assert found == {
        "rewrite_acc": [now.read(record.prompt, "English").token_accuracy],
        "rephrase_acc": [now.read("Anna is a native speaker of", "English").token_accuracy],
        "locality": {"neighborhood_acc": agreement[:1], "distracting_acc": agreement[1:]},
        "portability": {"one_hop_acc": [now.read("Anna was born in", "England").token_accuracy]},
    }


def test_locality_is_whole_when_nothing_changed(fp32_model: Bundle) -> None:
    model = CachedReader(fp32_model.reader())
    found = easyedit_metrics(parse(), model, model, ())
    assert found["locality"] == {"neighborhood_acc": [1.0], "distracting_acc": [1.0, 1.0]}


def test_fluency_counts_words_of_prompt_and_text_together(fp32_model: Bundle) -> None:
    model = CachedReader(fp32_model.reader())
    tokens = model.continuation("The capital of France is", 120)
    room = 100 - model.reader.length(REQUEST["prompt"])
    text = REQUEST["prompt"] + model.reader.decode(tokens[:room])
    found = easyedit_metrics(parse(), model, model, tokens)["fluency"]["ngram_entropy"]
    words = re.findall(r"\w+|[^\w\s]", unicodedata.normalize("NFKD", text))
    assert found == pytest.approx(n_gram_entropy(words))
    assert found == easyedit_metrics(parse(), model, model, tokens[:room])["fluency"]["ngram_entropy"]
    no_words = easyedit_metrics(parse(), model, model, tokens[:1])["fluency"]["ngram_entropy"]
    assert no_words < found


def test_record_without_prompts_has_the_rewrite_alone(fp32_model: Bundle) -> None:
    model = CachedReader(fp32_model.reader())
    found = easyedit_metrics(parse(rephrase_prompt=None, locality={}, portability={}), model, model, ())
    assert found.keys() == {"rewrite_acc", "locality", "portability"}
    assert found["locality"] == found["portability"] == {}


def test_unnamed_neighbours_are_the_neighborhood(models: Models, record: Callable[..., EvaluationRecord]) -> None:
    for record_format in ("counterfact", "personal"):
        fact = record(record_format)
        assert easyedit_metrics(fact, *models(fact), ())["locality"].keys() == {"neighborhood_acc"}


def test_summary_is_the_mean_of_means_over_the_records_that_have_a_figure() -> None:
    records: list[dict[str, Any]] = [
        {
            "pre": {"rewrite_acc": [0.0], "locality": {"a_acc": [1.0]}, "portability": {}},
            "post": {
                "rewrite_acc": [1.0],
                "locality": {"a_acc": [1.0, 0.0]},
                "portability": {},
                "fluency": {"ngram_entropy": 5.0},
            },
        },
        {
            "pre": {"rewrite_acc": [0.5], "locality": {}, "portability": {"b_acc": [0.25]}},
            "post": {"rewrite_acc": [0.5], "locality": {"a_acc": [1.0]}, "portability": {"b_acc": [1.0]}},
        },
        {},  # of a result file without these metrics
    ]
    assert easyedit_summary(records) == {
        "pre": {"rewrite_acc": 0.25, "portability": {"b_acc": 0.25}},
        "post": {
            "rewrite_acc": 0.75,
            "locality": {"a_acc": 0.75},
            "portability": {"b_acc": 1.0},
            "fluency": {"ngram_entropy": 5.0},
        },
    }
    assert json.loads(json.dumps(easyedit_summary([]))) == {"pre": {}, "post": {}}
