"""Other wordings of a fact's prompt: those that were given, and the prompt with words left out.

The words in front of the subject shape its key, those behind it what is read out of its value; a delta that is searched
with one wording is tied to these words. They can be left out of a prompt in any language that puts spaces between them,
and without knowing what they mean.
"""

from __future__ import annotations

from collections.abc import Iterator

from .prompt_rows import EditRequest, Wording

_SPARE = 3


def wordings_of(request: EditRequest, count: int) -> tuple[Wording, ...]:
    """Return the request's paraphrases, and shortened prompts up to ``count`` in all.

    A paraphrase that does not name the subject cannot be searched with, and is left out.
    """
    named = [text if "{}" in text else text.replace(request.subject, "{}", 1) for text in request.paraphrases]
    given = dict.fromkeys(text for text in named if text.count("{}") == 1)
    known = given | dict.fromkeys(shortened(request.prompt))
    known.pop(request.prompt, None)
    wordings = tuple(Wording(text, text not in given) for text in known)
    return wordings[: max(count, len(given))]


def shortened(prompt: str) -> Iterator[str]:
    """Yield a prompt with words left out that stand in front of the subject, or with none behind it.

    A prompt with less than three words in front has none to spare: what is asked for stands behind. So it may where the
    subject is part of a word ("the name of {}'s wife").
    """
    before, after = prompt.rstrip().split("{}")
    front = before.split()
    if len(front) < _SPARE:
        return
    space = before[len(before.rstrip()) :]
    if after[:1].isspace():
        yield before + "{}" + ("?" if after.endswith("?") else "")
    for words in (front[len(front) // 2 :], front[(len(front) - 1) % 2 :: 2]):
        yield f"{' '.join(words)}{space}{{}}{after}"
