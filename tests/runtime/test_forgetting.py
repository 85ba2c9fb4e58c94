"""What is forgotten is gone: the edit, and the words of it in other records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mobiedit.runtime.forgetting import least_told, same_edit, without
from mobiedit.runtime.journal import Journal
from mobiedit.runtime.journal_records import EditRecord
from tests.runtime.small_edits import BASE, ids, make_edit, undo

SUBJECT, TARGET, PROMPT = "Zahnärztin", "Dr. Çelik", "Die Praxis von {} gehört"
DENTIST = make_edit("a", PROMPT, subject=SUBJECT, target=TARGET, paraphrases=("Wem gehört {}?",), keep=("Hallo",))


def report(text: str, **more: Any) -> dict[str, Any]:
    return {"success": {"target_prob": 0.5}, "paraphrases": [{"prompt": text, "holds": True}], "failures": [], **more}


def only(records: tuple[Any, ...]) -> EditRecord:
    (record,) = records
    assert isinstance(record, EditRecord)
    return record


def encodings(text: str) -> list[bytes]:
    """Return the bytes by which a text could be found again."""
    escaped = json.dumps(text)[1:-1]
    twice = json.dumps(escaped)[1:-1]
    return [each.encode(coding) for each in (text, escaped, twice) for coding in ("utf-8", "utf-16-le", "utf-16-be")]


def require_gone(folder: Path, *texts: str) -> None:
    """Fail if any file of a folder holds one of the texts in any of its forms."""
    for path in folder.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert not [text for text in texts for form in encodings(text) if form in data], path


def test_words_of_a_forgotten_edit_are_in_no_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path, BASE)
    asked = PROMPT.replace("{}", SUBJECT)
    other = make_edit("b", keep=(asked, "Guten Tag"), paraphrases=(f"not {TARGET}",), report=report(asked))
    changed = {"kept": 7, "changed": [{"prompt": "x", "after": TARGET}]}
    third = make_edit("c", report=report("x", locality=changed))
    journal.append_edits((DENTIST,))
    journal.append_edits((other, third))
    journal.append_undo("a")
    with pytest.raises(AssertionError):
        require_gone(tmp_path, SUBJECT)  # it is there before
    journal.forget("a")
    require_gone(tmp_path, SUBJECT, TARGET, PROMPT, asked, *DENTIST.paraphrases)
    left = journal.read().edits
    assert ids(left) == ["b", "c"]
    assert left[0].keep == ("Guten Tag",)
    assert left[0].report == {"success": {"target_prob": 0.5}}
    assert left[1].report["locality"] == {"kept": 7}


def test_texts_stay_when_they_have_none_of_the_words() -> None:
    other = make_edit("b", keep=("Hallo",), report=report("The sky is"))
    assert without((DENTIST, undo("a"), other), (DENTIST,)) == (other,)


def test_free_texts_go_when_the_subject_is_the_same_in_other_letters() -> None:
    other = make_edit("b", subject="ZAHNÄRZTIN ", report=report("nothing of it"))
    assert only(without((other,), (DENTIST,))).report == {"success": {"target_prob": 0.5}}
    assert only(without((other,), (DENTIST,))).prompt == other.prompt


def test_scrubbed_edit_is_the_same_edit() -> None:
    whole = make_edit("b", keep=(TARGET, "Hallo"), report=report(TARGET))
    scrubbed = only(without((whole,), (DENTIST,)))
    assert scrubbed.keep == ("Hallo",)
    assert same_edit(whole, scrubbed)
    assert not same_edit(whole, make_edit("b", target="other"))
    for told in (least_told(whole, scrubbed), least_told(scrubbed, whole)):
        assert (told.keep, told.report) == (scrubbed.keep, scrubbed.report)
    assert least_told(whole, whole) is whole
