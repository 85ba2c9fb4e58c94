"""A reader that remembers: several metrics ask the same of the model, and a forward is dear."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from ..reader import Reader, Reading


class CachedReader:
    """A reader for one record, whose edits do not change.

    Attributes
    ----------
    reader
        What is asked, for all that is not remembered.
    read
        As `Reader.read`.
    continuation
        As `Reader.continuation`, greedy.
    answer
        As `Reader.answer`.
    """

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.read: Callable[[str, str | tuple[int, ...]], Reading] = cache(reader.read)
        self.continuation: Callable[[str, int], tuple[int, ...]] = cache(reader.continuation)
        self.answer: Callable[[str, int], tuple[int, ...]] = cache(reader.answer)
