"""Words for a POSIX shell: the one place where text for a device's shell is made."""

from __future__ import annotations

from collections.abc import Iterable

from mobiedit.runtime.errors import RequestError


def quote(word: str) -> str:
    """Return text that a POSIX shell reads as exactly one word, `word`.

    In single quotes no character has a meaning but the single quote itself (POSIX.1-2017, Shell Command Language,
    2.2.2), so that one leaves the quotes, is escaped, and enters them again. Every word is quoted: bare, ``if`` would
    be a keyword and ``a=b`` an assignment.

    Raises
    ------
    RequestError
        If the word holds NUL, which no program's argument can.
    """
    if "\0" in word:
        raise RequestError(f"{word!r} holds the character NUL, which no program takes: take it out")
    return "'" + word.replace("'", r"'\''") + "'"


def command_line(words: Iterable[str]) -> str:
    """Return text that a POSIX shell reads as exactly these words, the first of which is the program.

    Raises
    ------
    RequestError
        If there is no word, or one holds NUL.
    """
    quoted = [quote(word) for word in words]
    if not quoted:
        raise RequestError("there is no program to run on the device: name one")
    return " ".join(quoted)
