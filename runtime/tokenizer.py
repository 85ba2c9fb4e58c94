"""Text to tokens and back, with the offsets that find a subject."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from .errors import BundleError, RequestError


@dataclass(frozen=True)
class Encoding:
    """Token ids and the character span of each."""

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]

    def last_token_before(self, end: int) -> int:
        """Return the index of the last token that starts before character ``end``.

        Raises
        ------
        RequestError
            When no token does: the tokenizer drops that text.
        """
        before = [i for i, (start, stop) in enumerate(self.spans) if start < end and stop > start]
        if not before:
            raise RequestError("the subject has no token of its own: write it another way")
        return before[-1]

    def first_token_from(self, start: int) -> int:
        """Return the index of the first token that ends after character ``start``."""
        return next((i for i, (_, stop) in enumerate(self.spans) if stop > start), len(self.ids))


class Tokenizer:
    """The bundle's fast tokenizer. No special token is ever added: the sink token stands in front of every text."""

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises a bare Exception
            raise BundleError(f"{path.name} is not a tokenizer ({error}): export the bundle again") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._unknown_id = _unknown_id(self._tokenizer)

    def encode(self, text: str) -> Encoding:
        """Return the tokens of ``text``.

        Raises
        ------
        RequestError
            When the text is empty, is not valid Unicode, or has parts that the vocabulary does not know.
        """
        try:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        except (UnicodeError, TypeError) as error:
            raise RequestError(f"the text is not valid Unicode ({error}): give it in UTF-8") from error
        if not encoding.ids:
            raise RequestError("the text has no tokens: give at least one word")
        if self._unknown_id is not None and self._unknown_id in encoding.ids:
            start, stop = encoding.offsets[encoding.ids.index(self._unknown_id)]
            raise RequestError(f"the model's vocabulary does not know {text[start:stop]!r}: write it another way")
        return Encoding(tuple(encoding.ids), tuple(encoding.offsets))

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Return the text of ``ids``; special tokens are left out unless asked for."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=not special))


def _unknown_id(tokenizer: tokenizers.Tokenizer) -> int | None:
    """Return the id that stands for what the vocabulary does not know, where there is one."""
    if isinstance(tokenizer.model, tokenizers.models.Unigram):  # its Python class does not tell
        identifier: int | None = json.loads(tokenizer.to_str())["model"].get("unk_id")
        return identifier
    unknown = getattr(tokenizer.model, "unk_token", None)
    return tokenizer.token_to_id(unknown) if unknown else None
