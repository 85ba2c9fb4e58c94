"""CounterFact, KnowEdit's ZsRE, EasyEdit's requests and personal facts: one JSON object of each to a record."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from ..errors import RequestError
from .json_fields import Fields
from .records import EvaluationRecord, Format, Question

MARKS = {
    Format.COUNTERFACT: frozenset({"case_id", "locality_prompt", "locality_ground_truth"}),
    Format.ZSRE: frozenset({"cond", "locality", "portability"}),
    Format.PERSONAL: frozenset({"paraphrases", "unrelated", "inference"}),
}
"""Fields that tell a format: no other has them, but for EasyEdit's requests, which `is_easyedit` tells."""

_LOCAL_ANSWER = "locality_ground_truth"
_NO_ANSWER = "<|endoftext|>"  # what EasyEdit fills in where no answer is known


def is_easyedit(raw: object) -> bool:
    """Tell whether a JSON object is a request of EasyEdit: its locality or portability has prompts by name.

    KnowEdit has lists of objects there.
    """
    groups = [raw.get(name) for name in ("locality", "portability")] if isinstance(raw, dict) else []
    named = [each for group in groups if isinstance(group, dict) for each in group.values()]
    return any(isinstance(each, dict) and "prompt" in each for each in named)


def parse_record(raw: object, record_format: Format, index: int, where: str) -> EvaluationRecord:
    """Return the record of one JSON object.

    Parameters
    ----------
    index
        Its place in the file, from 0: its name where the data gives none.
    where
        Its name in messages.

    Raises
    ------
    RequestError
        When a field is missing or of another kind, or the record cannot be edited.
    """
    fields = Fields(raw, where)
    parse = {
        Format.COUNTERFACT: _counterfact,
        Format.ZSRE: _zsre,
        Format.PERSONAL: _personal,
        Format.EASYEDIT: _easyedit,
    }[record_format]
    identifier = fields.label("id" if record_format is Format.PERSONAL else "case_id") or str(index)
    try:
        return parse(fields, identifier)
    except RequestError as error:
        message = str(error)
        raise error if message.startswith(where) else RequestError(f"{where}: {message}") from error


def _counterfact(fields: Fields, identifier: str) -> EvaluationRecord:
    prompt, subject, target = _fact(fields)
    old = _others(fields.texts("ground_truth"), target)
    if not old:
        raise RequestError("'ground_truth' is missing or is the target: give the answer before the edit")
    neighbours: tuple[Question, ...] = ()
    if neighbour := fields.text_or_none("locality_prompt"):
        neighbours = (Question(neighbour, (fields.text("locality_ground_truth"),)),)
    paraphrases = fields.texts("rephrase_prompt")
    return EvaluationRecord(identifier, Format.COUNTERFACT, prompt, subject, target, old, paraphrases, neighbours)


def _zsre(fields: Fields, identifier: str) -> EvaluationRecord:
    prompt, subject, target = _fact(fields)
    return EvaluationRecord(
        identifier,
        Format.ZSRE,
        prompt,
        subject,
        target,
        _others(fields.texts("ground_truth"), target),
        fields.texts("rephrase_prompt") or fields.texts("rephrase"),
        _neighbours(fields),
        _portability(fields),
    )


def _easyedit(fields: Fields, identifier: str) -> EvaluationRecord:
    """Read what ``BaseEditor.edit_requests`` takes, and the flat names of its CounterFact and ZsRE loaders.

    ``easyeditor/editors/utils.py`` (``_prepare_requests``), ``dataset/counterfact.py``, ``zsre.py``, ``knowedit.py``.
    """
    record = _zsre(fields, identifier)
    flat = tuple(Question(prompt, answers) for prompt, answers in fields.paired("locality_prompt", _LOCAL_ANSWER))
    old = tuple(answer for answer in record.old if answer != _NO_ANSWER)
    return replace(record, format=Format.EASYEDIT, old=old, neighbours=(*record.neighbours, *flat))


def _personal(fields: Fields, identifier: str) -> EvaluationRecord:
    prompt, subject, target = _fact(fields)
    inference = tuple(Question(each.text("prompt"), each.texts("answers")) for each in fields.objects("inference"))
    if not all(question.answers for question in inference):
        raise RequestError("'inference' has no 'answers': give at least one, or leave the inference out")
    return EvaluationRecord(
        identifier,
        Format.PERSONAL,
        prompt,
        subject,
        target,
        _others(fields.texts("ground_truth"), target),
        fields.texts("paraphrases"),
        tuple(Question(each.text("prompt")) for each in fields.objects("unrelated")),
        {"inference": inference} if inference else {},
    )


def _fact(fields: Fields) -> tuple[str, str, str]:
    """Return prompt, subject and target, the subject as the prompt spells it."""
    prompt, subject = fields.text("prompt"), fields.text("subject")
    if subject not in prompt and (found := re.search(re.escape(subject), prompt, re.IGNORECASE)):
        subject = found[0]
    return prompt, subject, fields.text("target_new")


def _others(answers: Iterable[str], target: str) -> tuple[str, ...]:
    """Return the answers but the target: ZsRE has records whose target is one of the answers that are right already."""
    return tuple(answer for answer in answers if answer != target)


def _neighbours(fields: Fields) -> tuple[Question, ...]:
    groups = fields.groups("locality").items()
    return tuple(replace(question, kind=kind) for kind, objects in groups for question in _questions(objects))


def _portability(fields: Fields) -> dict[str, tuple[Question, ...]]:
    """Return the questions that have an answer, by kind; kinds without any are left out."""
    kinds = {kind: _questions(objects) for kind, objects in fields.groups("portability").items()}
    answered = {kind: tuple(question for question in kinds[kind] if question.answers) for kind in kinds}
    return {kind: questions for kind, questions in answered.items() if questions}


def _questions(objects: Iterable[Fields]) -> tuple[Question, ...]:
    return tuple(Question(*each) for o in objects for each in o.paired("prompt", "ground_truth"))
