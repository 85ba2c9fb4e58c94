"""Records without what was forgotten: the edit itself, and the words of it that other records repeat.

A report holds texts that are not of its own fact: what other prompts led to, and what failed. A request's own prompt,
subject and target are never changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from .facts import fact_key
from .journal_format import encode
from .journal_records import EditRecord, ForgetRecord, Record

_FREE_TEXTS = ("paraphrases", "failures")
_CHANGED = ("locality", "changed")


def without(records: Iterable[Record], forgotten: Sequence[EditRecord]) -> tuple[Record, ...]:
    """Return records without those of forgotten edits, and without their words.

    Tombstones stay, and a record that need not change is the same object.
    """
    names = {edit.edit_id for edit in forgotten}
    kept = (each for each in records if isinstance(each, ForgetRecord) or each.edit_id not in names)
    return tuple(_scrubbed(each, forgotten) if isinstance(each, EditRecord) else each for each in kept)


def same_edit(one: EditRecord, other: EditRecord) -> bool:
    """Tell whether two records are of the same edit, whatever texts were scrubbed from one of them."""
    return encode((_bare(one),)) == encode((_bare(other),))


def least_told(own: EditRecord, other: EditRecord) -> EditRecord:
    """Return the same edit with those texts alone that neither side scrubbed; `own` itself if that is what it has."""
    paraphrases = tuple(text for text in own.paraphrases if text in other.paraphrases)
    keep = tuple(text for text in own.keep if text in other.keep)
    report = own.report if _has_free_texts(other.report) else _without_free_texts(own.report)
    return _changed(own, paraphrases, keep, report)


def _scrubbed(record: EditRecord, forgotten: Iterable[EditRecord]) -> EditRecord:
    """Return a record without the words of forgotten edits."""
    for edit in forgotten:
        subject, target = _plain(edit.subject), _plain(edit.target)

        def tells(text: str, words: tuple[str, str] = (subject, target)) -> bool:
            return any(word in _plain(text) for word in words)

        report = record.report
        if _plain(record.subject) == subject or any(map(tells, _free_texts(report))):
            report = _without_free_texts(report)
        paraphrases, keep = (
            tuple(text for text in texts if not tells(text)) for texts in (record.paraphrases, record.keep)
        )
        record = _changed(record, paraphrases, keep, report)
    return record


def _changed(
    record: EditRecord, paraphrases: tuple[str, ...], keep: tuple[str, ...], report: dict[str, Any]
) -> EditRecord:
    if (paraphrases, keep, report) == (record.paraphrases, record.keep, record.report):
        return record
    return replace(record, paraphrases=paraphrases, keep=keep, report=report)


def _bare(record: EditRecord) -> EditRecord:
    return replace(record, paraphrases=(), keep=(), report={})


def _plain(text: str) -> str:
    return fact_key("", text)[1]


def _free_texts(report: dict[str, Any]) -> Iterator[str]:
    """Yield every text in the parts of a report that quote what the model was asked and said."""
    inner = report.get(_CHANGED[0])
    yield from _texts([report.get(name) for name in _FREE_TEXTS])
    yield from _texts(inner.get(_CHANGED[1]) if isinstance(inner, dict) else None)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _has_free_texts(report: dict[str, Any]) -> bool:
    inner = report.get(_CHANGED[0])
    return any(name in report for name in _FREE_TEXTS) or (isinstance(inner, dict) and _CHANGED[1] in inner)


def _without_free_texts(report: dict[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in report.items() if name not in _FREE_TEXTS}
    if isinstance(inner := rest.get(_CHANGED[0]), dict):
        rest[_CHANGED[0]] = {name: value for name, value in inner.items() if name != _CHANGED[1]}
    return rest
