"""The marks around a command, whatever it writes and however it comes."""

from __future__ import annotations

import subprocess
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobiedit.device.command_frame import CommandFrame


class Run:
    """What a frame makes of what a shell writes."""

    def __init__(self, *words: str) -> None:
        self.passed: list[bytes] = []
        self.written: list[bytes] = []
        self.frame = CommandFrame(words, self.written.append, self.passed.append)

    @property
    def text(self) -> bytes:
        return b"".join(self.passed)

    def marks(self) -> tuple[bytes, bytes]:
        """Return the marks that a real shell writes around a command that ends with 3."""
        return (self.frame._begin + "\n").encode(), (self.frame._end + "3\n").encode()


@settings(deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=60), st.lists(st.integers(0, 300), max_size=12))
def test_before_own_text_and_code_come_apart_when_cut_anywhere(before: bytes, own: bytes, cuts: list[int]) -> None:
    run = Run("x")
    begin, end = run.marks()
    text = before + begin + own + end
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, stop in pairwise(edges):
        run.frame.feed(text[start:stop])
    run.frame.finish()
    assert (run.frame.before, run.text, run.frame.code) == (before, own, 3)


@settings(deadline=None)
@given(st.binary(max_size=60), st.booleans(), st.lists(st.integers(0, 300), max_size=12))
def test_output_is_the_commands_own_and_known_to_be_whole_when_cut_anywhere(
    own: bytes, whole: bool, cuts: list[int]
) -> None:
    run = Run("x")
    text = own + (run.frame._out_end if whole else run.frame._out_end[:-1])
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, stop in pairwise(edges):
        run.frame.feed_out(text[start:stop])
    run.frame.finish()
    assert run.frame.whole == whole
    assert b"".join(run.written) == (own if whole else text)


@pytest.mark.parametrize("part", range(1, 30))
def test_text_is_the_commands_own_when_it_only_looks_like_a_mark(part: int) -> None:
    run = Run("x")
    begin, end = run.marks()
    run.frame.feed(begin + end[:part])
    assert run.text == b""
    run.frame.feed(b"~")
    assert run.text == end[:part] + b"~"
    run.frame.finish()
    assert run.frame.code is None


def test_text_passes_at_once_when_it_cannot_be_a_mark() -> None:
    run = Run("x")
    run.frame.feed(run.marks()[0] + b" 3%|#   ")
    assert run.text == b" 3%|#   "


def test_there_is_no_code_when_the_second_mark_is_missing() -> None:
    run = Run("x")
    begin, end = run.marks()
    run.frame.feed(begin + b"text" + end[:-1])  # its line is not complete: a digit may be missing
    run.frame.finish()
    assert run.frame.began
    assert run.frame.code is None
    assert run.text == b"text" + end[:-1]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 37"], 37),
        (["exit", "5"], 5),
        (["no such program"], 127),
        (["sh", "-c", "kill -9 $$"], 137),
        (["exec", "sh", "-c", "exit 255"], 255),
    ],
)
def test_the_code_is_the_commands_when_a_real_shell_runs_the_line(words: list[str], code: int) -> None:
    run = Run(*words)
    done = subprocess.run(["sh", "-c", run.frame.line], capture_output=True)
    run.frame.feed(done.stderr)
    run.frame.feed_out(done.stdout)
    assert (run.frame.code, run.frame.whole) == (code, True)
