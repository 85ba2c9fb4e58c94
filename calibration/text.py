"""Calibration text: one sentence or paragraph a line."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from mobiedit.runtime.errors import ExportError


def default_text() -> list[str]:
    """Return the sentences that ship with the project."""
    return _lines(files(__package__).joinpath("sentences.txt").read_text("utf-8"))


def held_out_text() -> list[str]:
    """Return the sentences that no calibration sees, on which an export is checked."""
    return _lines(files(__package__).joinpath("held_out.txt").read_text("utf-8"))


def spread(lines: Sequence[str], count: int) -> list[str]:
    """Return ``count`` lines, evenly spread, or all of them where there are fewer."""
    step = max(1, len(lines) // count)
    return list(lines[::step][:count])


def between(lines: Sequence[str], count: int) -> list[str]:
    """Return ``count`` evenly spread lines, each from the middle between two of those that `spread` gives."""
    step = max(1, len(lines) // count)
    return list(lines[step // 2 :: step][:count])


def read_text(path: Path) -> list[str]:
    """Return the lines of a user's file that are not blank.

    Raises
    ------
    ExportError
        When the file is missing, empty, binary or not UTF-8.
    """
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise ExportError(f"{path} cannot be read ({error.strerror}): check the path") from error
    except UnicodeDecodeError as error:
        raise ExportError(f"{path} is not UTF-8 (byte {error.start}): convert it") from error
    if "\0" in text:  # no text has one, and UTF-16 without its mark would pass for UTF-8
        raise ExportError(f"{path} is binary or UTF-16: give UTF-8 text, one sentence a line")
    if not (lines := _lines(text)):
        raise ExportError(f"{path} has no text: give one sentence a line")
    return lines


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
