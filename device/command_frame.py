"""A command's own beginning and end, told apart from the connection's: the device's shell writes a mark around it.

adb's exit code is no help: adb 29 ends with 0 when the link breaks, and with 1 for many reasons of its own. So the
shell on the device writes a word that nobody else knows to standard error before the program starts, and another with
the program's exit code when it has ended. What comes before the first mark is adb's own; without the second, nobody
knows how the program ended. The two streams come by separate ways, so standard output has a mark at its end too:
without it, some of what the program wrote may be missing.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence

from .quoting import command_line


class CommandFrame:
    """The marks around one run of one command.

    Parameters
    ----------
    words
        The program and its arguments.
    out, err
        Take what the command itself writes to standard output and to standard error.

    Attributes
    ----------
    line
        What the device's shell is to run.
    before
        What came on standard error before the command began.
    began
        Whether the command began.
    code
        The command's exit code on the device; None until it has ended.
    whole
        Whether all of its standard output has come.
    """

    def __init__(self, words: Sequence[str], out: Callable[[bytes], None], err: Callable[[bytes], None]) -> None:
        self._begin = f"mobiedit-begin-{secrets.token_hex(8)}"
        self._end = f"mobiedit-end-{secrets.token_hex(8)}-"
        # In a shell of its own: nothing that the words do, "exit" for one, can keep the second mark away.
        self._out_end = f"mobiedit-out-{secrets.token_hex(8)}".encode()
        self.line = (
            f"echo {self._begin} >&2; ({command_line(words)}); code=$?; "
            f"printf %s {self._out_end.decode()}; echo {self._end}$code >&2"
        )
        self.before = b""
        self.began = False
        self.code: int | None = None
        self.whole = False
        self._out, self._err = out, err
        self._held = self._held_out = b""

    def feed(self, chunk: bytes) -> None:
        """Take what came on standard error; what is the command's own is passed on at once."""
        if not self.began:
            self.before, mark, chunk = _split(self.before + chunk, re.compile(self._begin.encode() + rb"\r?\n"))
            self.began = mark is not None
        if self.began and self.code is None:
            text, mark, chunk = _split(self._held + chunk, re.compile(self._end.encode() + rb"(\d+)\r?\n"))
            kept = len(text) if mark else self._start_of_end(text)
            self._held = text[kept:]
            self.code = int(mark[1]) if mark else None
            self._pass_on(text[:kept])
        if self.code is not None:
            self._pass_on(chunk)  # a process that the command left behind

    def feed_out(self, chunk: bytes) -> None:
        """Take what came on standard output; what is the command's own is passed on at once."""
        text = self._held_out + chunk
        if not self.whole:
            before, mark, behind = text.partition(self._out_end)
            self.whole = bool(mark)
            text = before + behind
        kept = len(text) if self.whole else len(text) - _overlap(text, self._out_end)
        self._held_out = text[kept:]
        if text[:kept]:
            self._out(text[:kept])

    def finish(self) -> None:
        """Pass on what looked like the start of a mark and was none: no more will come."""
        self._pass_on(self._held)
        if self._held_out:
            self._out(self._held_out)
        self._held = self._held_out = b""

    def _pass_on(self, text: bytes) -> None:
        if text:
            self._err(text)

    def _start_of_end(self, text: bytes) -> int:
        """Return where a mark begins of which only the start has come, or the length of the text."""
        word = self._end.encode()
        begin = text.rfind(word)
        if begin >= 0 and not text[begin + len(word) :].strip(b"\r0123456789"):
            return begin
        return len(text) - _overlap(text, word)


def _overlap(text: bytes, word: bytes) -> int:
    """Return how long an end of the text is a start of the word, which is not all there."""
    lengths = range(min(len(word) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(word[:length])), 0)


def _split(text: bytes, pattern: re.Pattern[bytes]) -> tuple[bytes, re.Match[bytes] | None, bytes]:
    """Return what is before a match, the match, and what is behind it."""
    match = pattern.search(text)
    return (text[: match.start()], match, text[match.end() :]) if match else (text, None, b"")
