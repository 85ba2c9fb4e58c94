"""A record that an edit is measured on: the fact, and what to ask of the model beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ..prompt_rows import EditRequest


class Format(StrEnum):
    """Which data a record is from; it decides how some metrics are defined.

    ``COUNTERFACT`` is of Meng et al. 2022; ``ZSRE`` of Levy et al. 2017, as KnowEdit arranges it (Zhang et al. 2024);
    ``PERSONAL`` holds facts about the user, with unrelated prompts and questions that take a fact one step further;
    ``EASYEDIT`` are requests as EasyEdit takes them (Wang et al. 2024), measured as ``ZSRE``.
    """

    COUNTERFACT = "counterfact"
    ZSRE = "zsre"
    PERSONAL = "personal"
    EASYEDIT = "easyedit"


@dataclass(frozen=True)
class Question:
    """A prompt, and the answers to it that are acceptable, where some are known.

    ``kind`` is the data's name for a neighbour's group, where it has one.
    """

    prompt: str
    answers: tuple[str, ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class EvaluationRecord:
    """A fact to teach, and the prompts that tell what it did to the model.

    Attributes
    ----------
    identifier
        Its name in the data, or its place there, from 0.
    prompt
        The prompt written out, with the subject in it as `subject` spells it.
    target
        The new answer.
    old
        The answers that it shall replace; none where the data names none but the new one itself.
    paraphrases
        Other wordings of the prompt.
    neighbours
        Questions whose answer shall stay.
    portability
        Questions that the new fact answers, by kind.

    Raises
    ------
    RequestError
        When it cannot be edited: no subject, no target, the subject not in the prompt.
    """

    identifier: str
    format: Format
    prompt: str
    subject: str
    target: str
    old: tuple[str, ...] = ()
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[Question, ...] = ()
    portability: Mapping[str, tuple[Question, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a record that cannot be edited."""
        _ = self.request

    @property
    def request(self) -> EditRequest:
        """The edit: the fact alone, so that no metric's prompt is known to it."""
        return EditRequest.from_text(self.prompt, self.subject, self.target)
