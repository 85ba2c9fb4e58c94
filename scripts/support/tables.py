"""Rows of figures as text: for the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Cell = str | int | float | bool | None


def text_table(rows: Sequence[Mapping[str, Cell]]) -> str:
    """Return rows of the same columns, aligned."""
    lines = _cells(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def markdown_table(rows: Sequence[Mapping[str, Cell]]) -> str:
    """Return rows of the same columns as a Markdown table."""
    head, *body = _cells(rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body))


def _cells(rows: Sequence[Mapping[str, Cell]]) -> list[list[str]]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [[name.replace("_", " ") for name in names], *([_cell(row.get(name)) for name in names] for row in rows)]


def _cell(value: Cell) -> str:
    if value is None:
        return "-"
    if isinstance(value, str | bool):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
