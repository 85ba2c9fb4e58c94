"""The personal facts are a dataset: every record keeps the promises of scripts/data/README.md."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mobiedit.runtime.prompt_rows import EditRequest

DATA = Path(__file__).parents[2] / "scripts" / "data" / "personal_facts.json"
FACTS: list[dict[str, Any]] = json.loads(DATA.read_text("utf-8"))
FIELDS = {"id", "kind", "subject", "prompt", "target_new", "paraphrases", "unrelated", "inference"}

each_fact = pytest.mark.parametrize("fact", FACTS, ids=[fact["id"] for fact in FACTS])


def texts(fact: dict[str, Any]) -> list[str]:
    """Return every text of a fact."""
    return [
        fact["subject"],
        fact["target_new"],
        *prompts(fact),
        *fact["inference"]["answers"],
    ]


def prompts(fact: dict[str, Any]) -> list[str]:
    """Return every prompt of a fact."""
    unrelated = [question["prompt"] for question in fact["unrelated"]]
    return [fact["prompt"], *fact["paraphrases"], *unrelated, fact["inference"]["prompt"]]


def test_there_are_enough_facts_of_enough_kinds() -> None:
    kinds = Counter(fact["kind"] for fact in FACTS)
    assert len(FACTS) >= 72
    assert len(kinds) >= 12
    assert min(kinds.values()) >= 3


@pytest.mark.parametrize("field", ["id", "subject", "prompt"])
def test_no_two_facts_share(field: str) -> None:
    assert len({fact[field].lower() for fact in FACTS}) == len(FACTS)


def test_no_prompt_is_asked_twice() -> None:
    assert [prompt for prompt, n in Counter(p for fact in FACTS for p in prompts(fact)).items() if n > 1] == []


def test_targets_and_subjects_vary() -> None:
    words = [len(fact["target_new"].split()) for fact in FACTS]
    assert set(words) == {1, 2, 3, 4, 5, 6}
    assert sum(n >= 3 for n in words) >= len(FACTS) / 4
    assert sum(any(c.isdigit() for c in fact["target_new"]) for fact in FACTS) >= 8
    assert sum(fact["prompt"].startswith(fact["subject"]) for fact in FACTS) >= 10
    assert sum("?" in fact["prompt"] for fact in FACTS) >= 5


@each_fact
def test_record_is_complete(fact: dict[str, Any]) -> None:
    assert set(fact) == FIELDS
    assert set(fact["inference"]) == {"prompt", "answers"}
    assert all(set(question) == {"prompt", "distance"} for question in fact["unrelated"])
    assert len(fact["paraphrases"]) >= 2
    assert {question["distance"] for question in fact["unrelated"]} == {"near", "far"}
    assert fact["inference"]["answers"]


@each_fact
def test_texts_are_clean(fact: dict[str, Any]) -> None:
    for text in texts(fact):
        assert text == " ".join(text.split()) != ""
        assert "{" not in text
    assert fact["target_new"][-1] not in ".!?"
    assert not any(prompt.endswith("?") for prompt in prompts(fact))


@each_fact
def test_subject_is_where_the_edit_looks_for_it(fact: dict[str, Any]) -> None:
    for prompt in (fact["prompt"], *fact["paraphrases"]):
        assert EditRequest.from_text(prompt, fact["subject"], fact["target_new"]).text == prompt
    assert fact["subject"].lower() in fact["inference"]["prompt"].lower()
    for question in fact["unrelated"]:
        assert fact["subject"].lower() not in question["prompt"].lower()


@each_fact
def test_no_question_gives_the_target_away(fact: dict[str, Any]) -> None:
    target = fact["target_new"].lower()
    assert not any(target in prompt.lower() for prompt in prompts(fact))
    assert target not in {answer.lower() for answer in fact["inference"]["answers"]}
    assert fact["prompt"] not in fact["paraphrases"]
