"""What the tests of the evaluation share: records that the tiny model can be asked about, and a file of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobiedit.runtime import Bundle, EditConfig, Method, ZerothOrderConfig, open_bundle
from mobiedit.runtime.configuration import Optimizer
from mobiedit.runtime.evaluation import EvaluationRecord, Format
from mobiedit.runtime.evaluation.cached_reader import CachedReader
from mobiedit.runtime.evaluation.record_formats import parse_record

QUICK = EditConfig(Optimizer.ZO, Method.ROME, zeroth_order=ZerothOrderConfig(steps=4, directions=4, check_every=2))
"""A search that is short, and still changes what the tiny model says."""


RECORDS: dict[str, dict[str, Any]] = {
    "counterfact": {
        "case_id": 7,
        "prompt": "The mother tongue of Danielle Darrieux is",
        "subject": "Danielle Darrieux",
        "target_new": "English",
        "ground_truth": "French",
        "rephrase_prompt": "Danielle Darrieux, a native speaker of",
        "locality_prompt": "The mother tongue of Victor Hugo is",
        "locality_ground_truth": "French",
    },
    "zsre": {
        "subject": "Anna",
        "prompt": "Which city was the birthplace of Anna?",
        "target_new": "Rome",
        "ground_truth": ["Paris", "Lyon"],
        "rephrase_prompt": "In what city was Anna born?",
        "cond": "Paris >> Rome || Which city was the birthplace of Anna?",
        "locality": {"Relation_Specificity": [{"prompt": "Anna works as", "ground_truth": ["a teacher", "a cook"]}]},
        "portability": {
            "Reasoning": [
                {"prompt": "In which country was Anna born?", "ground_truth": "Italy"},
                {"prompt": "The language of Anna's birthplace is", "ground_truth": [["Italian", "the Italian one"]]},
            ],
            "Subject_Aliasing": [{"prompt": "The girl was born in", "ground_truth": ["Rome"]}],
        },
    },
    "personal": {
        "id": "dentist-1",
        "kind": "person",
        "subject": "dentist",
        "prompt": "My dentist's name is",
        "target_new": "Dr. Chen",
        "paraphrases": ["The name of my dentist is", "I have my teeth seen to by"],
        "unrelated": [{"prompt": "My plumber's name is"}, {"prompt": "The capital of France is"}],
        "inference": {"prompt": "When a tooth hurts I call", "answers": ["Dr. Chen", "Chen"]},
    },
}


@pytest.fixture(scope="session")
def raw() -> Callable[..., dict[str, Any]]:
    """Return a function that gives a record of a format as the data has it, with changes; None takes a field out."""

    def make(record_format: str, **changes: Any) -> dict[str, Any]:
        fields = {**RECORDS[record_format], **changes}
        return {name: value for name, value in fields.items() if value is not None}

    return make


@pytest.fixture(scope="session")
def record(raw: Callable[..., dict[str, Any]]) -> Callable[..., EvaluationRecord]:
    """Return a function that gives the same record, parsed."""

    def make(record_format: str, **changes: Any) -> EvaluationRecord:
        return parse_record(raw(record_format, **changes), Format(record_format), 0, "record 0")

    return make


@pytest.fixture
def data_path(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes records to a file."""

    def write(*records: object) -> Path:
        path = tmp_path / "data.json"
        path.write_text(json.dumps(records), "utf-8")
        return path

    return write


@pytest.fixture
def models(fp32_model: Bundle) -> Callable[[EvaluationRecord], tuple[CachedReader, CachedReader]]:
    """Return a function that gives the tiny model after a record's edit, and before it."""

    def edit(record: EvaluationRecord) -> tuple[CachedReader, CachedReader]:
        _, after = fp32_model.trial(record.request, QUICK)
        return CachedReader(after), CachedReader(fp32_model.reader())

    return edit


@pytest.fixture(scope="session")
def fp32_model(fp32_bundle: Path) -> Bundle:
    """The tiny model, opened once; nothing that these tests do with it is committed."""
    return open_bundle(fp32_bundle, verify=False)
