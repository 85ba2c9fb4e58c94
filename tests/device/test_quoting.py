"""Words for a shell, read back by real shells."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mobiedit.device.quoting import command_line, quote
from mobiedit.runtime.errors import RequestError

SHELLS = [shell for shell in ("sh", "dash", "bash", "mksh") if shutil.which(shell)]
WORDS = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30), max_size=5)


@pytest.mark.parametrize("shell", SHELLS)
@settings(deadline=None, max_examples=60)
@given(words=WORDS)
@example(words=["a b", "it's", '"', ";", "$(id)", "`id`", "a\nb", "-n", "--", "", "*", "~", "\\", "ü", "!!", "#", "if"])
def test_a_shell_reads_back_exactly_the_words_when_they_hold_anything(shell: str, words: list[str]) -> None:
    line = command_line(["printf", r"%s\0", *words, "end"])
    out = subprocess.run([shell, "-c", line], capture_output=True, check=True).stdout
    assert out == b"".join(word.encode() + b"\0" for word in [*words, "end"])


@pytest.mark.parametrize("word", ["if", "a=b", "{", "!", "A B"])
def test_the_program_is_a_word_too_when_its_name_means_something_to_a_shell(word: str) -> None:
    ended = subprocess.run(["sh", "-c", command_line([word])], capture_output=True)
    assert ended.returncode == 127  # "not found": looked up as a program, and as nothing else
    assert word.encode() in ended.stderr


def test_a_word_is_refused_when_it_holds_nul() -> None:
    with pytest.raises(RequestError, match="NUL"):
        quote("a\0b")


def test_a_command_is_refused_when_it_has_no_word() -> None:
    with pytest.raises(RequestError, match="no program"):
        command_line([])
