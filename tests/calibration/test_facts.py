"""Facts and their rows: well-formed relations, the same rows for a seed, tokens that say what the text says."""

from __future__ import annotations

import json
import random
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobiedit.calibration.facts import Fact, FactMix, FactRow, FactSampler, facts_of_file, own_relations
from mobiedit.calibration.text import default_text
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.prompt_rows import EditRequest, build_rows
from mobiedit.runtime.tokenizer import Tokenizer

LINES = default_text()[:80]
PREFIXES = ("{}", "In the morning, they talked. {}", "I think that you know. {}")
FACTS_ALONE = FactMix(plain=0, borrowed=0, prefixed=0)
RECORDS = [
    {"id": "a", "subject": "dentist", "prompt": "My dentist's name is", "target_new": " Dr. Chen ", "unrelated": []},
    {"id": "b", "subject": "Anna", "prompt": "The city of birth of Anna", "target_new": "Rome", "paraphrases": []},
]


@pytest.fixture(scope="module")
def relations() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(files("mobiedit.calibration").joinpath("relations.json").read_text("utf-8"))
    return data


def make(tokenizer: Tokenizer, mix: FactMix, seed: int = 0, lines: list[str] | None = None) -> FactSampler:
    return FactSampler(tokenizer, own_relations(), LINES if lines is None else lines, PREFIXES, mix, seed)


# The relations


def test_relations_name_kinds_that_exist_when_read(relations: dict[str, Any]) -> None:
    assert relations.keys() == {"kinds", "relations"}
    assert len(relations["relations"]) > 50
    for relation in relations["relations"]:
        assert {"prompt", "subject", "target"} <= relation.keys() <= {"prompt", "paraphrase", "subject", "target"}
        assert {relation["subject"], relation["target"]} <= relations["kinds"].keys(), relation


def test_relations_have_one_place_for_the_subject_when_read(relations: dict[str, Any]) -> None:
    prompts = [
        relation[name] for relation in relations["relations"] for name in ("prompt", "paraphrase") if name in relation
    ]
    for prompt in prompts:
        assert prompt.count("{}") == 1, prompt
        assert prompt == prompt.strip(), prompt
    pairs = [(relation["prompt"], relation["target"]) for relation in relations["relations"]]
    assert len(set(pairs)) == len(pairs)


def test_kinds_have_names_and_a_use_when_read(relations: dict[str, Any]) -> None:
    used = {relation[part] for relation in relations["relations"] for part in ("subject", "target")}
    assert used == relations["kinds"].keys()
    for kind, names in relations["kinds"].items():
        assert len(names) > 1, kind
        assert len(set(names)) == len(names), kind
        assert all(name and name == name.strip() and "{}" not in name for name in names), kind


def test_relations_are_shipped_when_installed() -> None:
    project = Path(__file__).parents[2] / "pyproject.toml"
    tomllib = pytest.importorskip("tomllib")
    shipped = tomllib.loads(project.read_text("utf-8"))["tool"]["setuptools"]["package-data"]["mobiedit.calibration"]
    assert "*.json" in shipped


# Sources


def test_facts_are_of_the_relations_when_drawn(relations: dict[str, Any]) -> None:
    names = {name for kind in relations["kinds"].values() for name in kind}
    spelled = {name[:1].upper() + name[1:] for name in names} | names
    draw, rng = own_relations(), random.Random(0)
    facts = [draw(rng) for _ in range(300)]
    assert len({fact.text for fact in facts}) > 250
    for fact in facts:
        assert fact.target in names
        assert any(fact.text[: fact.subject_end].endswith(name) for name in spelled), fact
        assert fact.text[0].upper() == fact.text[0]
        assert "{}" not in fact.text


def test_asides_ask_the_subject_for_something_else_when_drawn(relations: dict[str, Any]) -> None:
    """Else the lens would be told to teach the target and to leave it out at one and the same place."""
    # What is asked of whom, by the text: a wording may serve several relations.
    asked: dict[str, set[tuple[str, str]]] = {}
    for relation in relations["relations"]:
        for prompt in (relation["prompt"], relation.get("paraphrase", relation["prompt"])):
            for subject in relations["kinds"][relation["subject"]]:
                text = prompt.replace("{}", subject)
                asked.setdefault(text[:1].upper() + text[1:], set()).add((subject, relation["target"]))
    draw, rng = own_relations(), random.Random(0)
    facts = [draw(rng) for _ in range(300)]
    pairs = [(fact, fact.aside) for fact in facts if fact.aside is not None]
    assert len(pairs) > 250  # a few kinds have one relation alone
    for fact, aside in pairs:
        assert aside.aside is None
        assert any(
            subject == other and target != elsewhere
            for subject, target in asked[fact.text]
            for other, elsewhere in asked[aside.text]
        ), fact


def test_facts_are_of_the_file_when_one_is_given(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(RECORDS), "utf-8")
    draw, rng = facts_of_file(path), random.Random(0)
    facts = {draw(rng) for _ in range(60)}
    assert facts == {
        fact
        for target in ("Dr. Chen", "Rome")
        for fact in (
            Fact("My dentist's name is", 10, "Dr. Chen", Fact("dentist is a", 7, target)),
            Fact("The city of birth of Anna", 25, "Rome", Fact("Anna is a", 4, target)),
        )
    }


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"{}", b'[{"a": 1}]', b"\xff\xfe\xff", b"[1]"])
def test_file_is_refused_in_one_line_when_it_holds_no_records(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RequestError, match=r"\A[^\n]+\Z"):
        facts_of_file(path)


# Rows


@pytest.mark.parametrize("mix", [FACTS_ALONE, FactMix(), FactMix(1, 0, 0), FactMix(0, 1, 1)], ids=str)
def test_rows_are_the_same_when_the_seed_is(mix: FactMix, byte_tokenizer: Tokenizer) -> None:
    one, two, other = (make(byte_tokenizer, mix, seed) for seed in (3, 3, 4))
    rows = one.rows(20)
    assert rows == two.rows(12) + two.rows(8)  # in however many calls
    assert rows != other.rows(20)
    assert rows != one.rows(20)


@settings(deadline=None, max_examples=40)
@given(
    shares=st.tuples(*(st.floats(0, 1) for _ in range(3))), seed=st.integers(0, 1000), lines=st.integers(0, len(LINES))
)
def test_rows_are_well_formed_when_the_mix_is_any(
    shares: tuple[float, float, float], seed: int, lines: int, byte_tokenizer: Tokenizer
) -> None:
    for row in make(byte_tokenizer, FactMix(*shares), seed, LINES[:lines]).rows(10):
        assert 0 <= row.subject < len(row.prompt)
        assert row.target
        assert all(0 <= token < 600 for token in row.prompt + row.target)


def test_rows_say_what_the_fact_says_when_nothing_is_mixed_in(byte_tokenizer: Tokenizer) -> None:
    source, rng = own_relations(), random.Random(5)
    facts = [source(rng) for _ in range(50)]
    given_facts = iter(facts)
    sampler = FactSampler(byte_tokenizer, lambda _: next(given_facts), LINES, PREFIXES, FACTS_ALONE, 0)
    for fact, row in zip(facts, sampler.rows(50), strict=True):
        assert byte_tokenizer.decode(row.prompt) == fact.text
        assert byte_tokenizer.decode(row.target) == f" {fact.target}"
        assert byte_tokenizer.decode(row.prompt[: row.subject + 1]).startswith(fact.text[: fact.subject_end])


def test_rows_are_those_of_an_edit_when_the_fact_is_the_same(byte_tokenizer: Tokenizer) -> None:
    prompt, subject, target = "The mother tongue of {} is", "Anna Miller", "English"
    request = EditRequest(prompt, subject, target)
    fact = Fact(request.text, prompt.index("{}") + len(subject), target)
    for prefix in PREFIXES:
        mix = FactMix(plain=0, borrowed=0, prefixed=1)
        (row,) = FactSampler(byte_tokenizer, lambda _: fact, LINES, (prefix,), mix, 0).rows(1)
        wanted = build_rows(request, (prefix,), byte_tokenizer, 32)
        assert row.target == wanted.target
        assert row.prompt + row.target[:-1] == wanted.rewriting[0].ids
        assert row.subject == wanted.rewriting[0].subject_index
        assert len(row.prompt) - 1 == wanted.rewriting[0].readouts[0]


def test_targets_are_cut_out_of_text_when_borrowed(byte_tokenizer: Tokenizer) -> None:
    texts = [byte_tokenizer.encode(line).ids for line in LINES]

    def in_text(span: tuple[int, ...]) -> bool:
        return any(ids[i : i + len(span)] == span for ids in texts for i in range(len(ids)))

    rows = make(byte_tokenizer, FactMix(plain=0, borrowed=1, prefixed=0)).rows(40)
    assert all(in_text(row.target) for row in rows)
    assert {len(row.target) for row in rows} <= set(range(1, 7))
    assert all(byte_tokenizer.decode(row.target).startswith(" ") for row in rows)  # each begins a word
    plain = make(byte_tokenizer, FactMix(plain=1, borrowed=0, prefixed=0)).rows(40)
    assert all(in_text(row.prompt) and in_text(row.target) for row in plain)
    assert all(len(row.prompt) - 1 - row.subject <= 7 for row in plain)


@pytest.mark.parametrize("lines", [[], ["short", "a b"]], ids=["none", "short"])
def test_rows_are_facts_when_there_is_no_text(lines: list[str], byte_tokenizer: Tokenizer) -> None:
    rows = make(byte_tokenizer, FactMix(plain=1, borrowed=1, prefixed=0), 0, lines).rows(5)
    assert all(isinstance(row, FactRow) and row.target for row in rows)


def test_asides_keep_their_own_prompt_and_target_when_the_fact_is_mixed(byte_tokenizer: Tokenizer) -> None:
    """A prefix or a borrowed target is for the fact: its aside is what it was."""
    fact = Fact("Anna is", 4, "here", Fact("The aunt of Anna is", 16, "Ida"))
    sampler = FactSampler(byte_tokenizer, lambda _: fact, LINES, PREFIXES[1:], FactMix(0, 1, 1), 0)
    for row in sampler.rows(10):
        assert row.aside is not None
        assert byte_tokenizer.decode(row.aside.prompt) == "The aunt of Anna is"
        assert byte_tokenizer.decode(row.aside.prompt[: row.aside.subject + 1]) == "The aunt of Anna"
        assert byte_tokenizer.decode(row.aside.target) == " Ida"
        assert byte_tokenizer.decode(row.prompt) != "Anna is"


def test_rows_have_no_aside_when_cut_out_of_text(byte_tokenizer: Tokenizer) -> None:
    assert not any(row.aside for row in make(byte_tokenizer, FactMix(1, 0, 0)).rows(10))


def test_prefixes_stand_in_front_when_asked_for(byte_tokenizer: Tokenizer) -> None:
    fact = Fact("Anna is", 4, "here")
    sampler = FactSampler(byte_tokenizer, lambda _: fact, LINES, PREFIXES, FactMix(0, 0, 1), 0)
    texts = {byte_tokenizer.decode(row.prompt) for row in sampler.rows(40)}
    assert texts == {prefix.replace("{}", fact.text) for prefix in PREFIXES}
