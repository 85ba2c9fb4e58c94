"""The project's own text, and a user's file."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mobiedit.calibration.text import default_text, held_out_text, read_text
from mobiedit.runtime.errors import ExportError


@pytest.mark.parametrize("text", [default_text, held_out_text])
def test_own_text_is_lines_without_blanks_or_repeats_when_read(text: Callable[[], list[str]]) -> None:
    lines = text()
    assert len(lines) >= 32  # lines that the export compares
    assert all(line and line == line.strip() for line in lines)
    assert len(set(lines)) == len(lines)


def test_held_out_text_is_unseen_when_calibration_takes_the_own_text() -> None:
    assert not set(held_out_text()) & set(default_text())


def test_lines_are_those_with_text_when_file_has_blank_ones(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("\n  One. \n\n\t\nTwo, with a comma.\n   \n", encoding="utf-8")
    assert read_text(tmp_path / "text") == ["One.", "Two, with a comma."]


def test_lines_are_the_same_when_file_is_from_windows(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfOne caf\xc3\xa9.\r\n\r\nTwo.\r\n")
    assert read_text(tmp_path / "text") == ["One café.", "Two."]


def test_last_line_counts_when_it_has_no_end(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"One.\nTwo.")
    assert read_text(tmp_path / "text") == ["One.", "Two."]


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b" \t \r\n", b"\xef\xbb\xbf"], ids=["empty", "ends", "blank", "mark"]
)
def test_file_is_refused_in_one_line_when_it_has_no_text(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(ExportError, match=r"\A[^\n]+ has no text: give one sentence a line\Z"):
        read_text(tmp_path / "text")


@pytest.mark.parametrize(
    ("content", "byte"), [(b"caf\xe9 au lait\n", 3), ("UTF-16".encode("utf-16"), 0)], ids=["latin-1", "utf-16"]
)
def test_byte_is_named_when_file_is_not_utf8(content: bytes, byte: int, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(ExportError, match=rf"\A[^\n]+ is not UTF-8 \(byte {byte}\): convert it\Z"):
        read_text(tmp_path / "text")


@pytest.mark.parametrize(
    "content", [b"\0", b"text\0", "One.\nTwo.\n".encode("utf-16-le")], ids=["nul", "end", "utf-16"]
)
def test_file_is_refused_in_one_line_when_binary_bytes_pass_for_utf8(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(ExportError, match=r"\A[^\n]+ is binary or UTF-16: give UTF-8 text, one sentence a line\Z"):
        read_text(tmp_path / "text")


@given(content=st.binary(max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_file_is_lines_or_refused_when_it_is_anything(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(content)
    with contextlib.suppress(ExportError):
        lines = read_text(tmp_path / "text")
        assert lines
        assert all(line and "\0" not in line for line in lines)


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_file_is_refused_in_one_line_when_missing_or_a_folder(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "missing" if kind == "missing" else tmp_path
    with pytest.raises(ExportError, match=r"\A[^\n]+ cannot be read \([^\n)]+\): check the path\Z"):
        read_text(path)
