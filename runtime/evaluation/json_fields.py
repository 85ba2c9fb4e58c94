"""Named fields of a JSON object, each of the kind that it should be."""

from __future__ import annotations

from collections.abc import Iterator
from reprlib import repr as short

from ..errors import RequestError


class Fields:
    """A JSON object whose fields are read by name; one that is missing, null or blank counts as not given.

    Parameters
    ----------
    raw
        What the JSON holds there.
    where
        Its name in messages.

    Raises
    ------
    RequestError
        When ``raw``, or a field that is asked for, is of another kind.
    """

    def __init__(self, raw: object, where: str) -> None:
        if not isinstance(raw, dict):
            raise RequestError(f"{where} must be an object with named fields, not {short(raw)}: mend the file")
        self._raw = raw
        self._where = where

    def text(self, name: str) -> str:
        """Return a text that must be there."""
        if not (text := self.text_or_none(name)):
            raise RequestError(f"{self._where} has no {name!r}: give it, or name the file's right format")
        return text

    def text_or_none(self, name: str) -> str | None:
        """Return a text, if it is given."""
        raw = self._raw.get(name)
        return None if raw is None else self._checked(raw, name) or None

    def texts(self, name: str) -> tuple[str, ...]:
        """Return all texts of a text, a list or nested lists, each once, in order."""
        return tuple(dict.fromkeys(text for text in self._leaves(self._raw.get(name), name) if text))

    def label(self, name: str) -> str | None:
        """Return a text or a whole number as text, if it is given."""
        raw = self._raw.get(name)
        return str(raw) if isinstance(raw, int) and not isinstance(raw, bool) else self.text_or_none(name)

    def paired(self, name: str, other: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Return each text of ``name`` with the texts of ``other`` in its place: one text and all, or lists as long.

        A text that is missing, null or blank is left out with what is in its place.
        """
        raw, others = self._raw.get(name), self._raw.get(other)
        if not isinstance(raw, list):
            raw, others = [raw], [others]
        elif len(raw) == 1 and not (isinstance(others, list) and len(others) == 1):
            others = [others]
        if not isinstance(others, list) or len(others) != len(raw):
            raise RequestError(f"{self._where}: {name!r} and {other!r} must be as long as each other: mend the file")
        texts = [None if each is None else self._checked(each, name) for each in raw]
        answers = [tuple(dict.fromkeys(t for t in self._leaves(each, other) if t)) for each in others]
        return tuple((text, answer) for text, answer in zip(texts, answers, strict=True) if text)

    def objects(self, name: str) -> tuple[Fields, ...]:
        """Return an object, or the objects of a list."""
        raw = self._raw.get(name)
        listed = raw if isinstance(raw, list) else [] if raw is None or raw == {} else [raw]
        return tuple(Fields(item, f"{self._where}: {name}[{index}]") for index, item in enumerate(listed))

    def groups(self, name: str) -> dict[str, tuple[Fields, ...]]:
        """Return the objects of each list in an object of lists."""
        if not (raw := self._raw.get(name)):
            return {}
        inner = Fields(raw, f"{self._where}: {name}")
        return {kind: inner.objects(kind) for kind in inner._raw}

    def _leaves(self, raw: object, name: str) -> Iterator[str]:
        if isinstance(raw, list):
            for item in raw:
                yield from self._leaves(item, name)
        elif raw is not None:
            yield self._checked(raw, name)

    def _checked(self, raw: object, name: str) -> str:
        if not isinstance(raw, str):
            raise RequestError(f"{self._where}: {name!r} must be a text, not {short(raw)}: mend the file")
        try:
            raw.encode()
        except UnicodeError as error:
            raise RequestError(f"{self._where}: {name!r} is not valid Unicode: mend the file") from error
        return raw.strip()
