"""Lines of styled text, and how they are put together: at the two ends of a line, beside each other, cut to a width."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

Row = tuple[tuple[int, Text], ...]  # pieces of one line of the screen and the columns where they begin


def ink(text: str, style: str = "") -> Text:
    """Styled text whose style does not spread to what is appended, as that of `Text(text, style)` does."""
    return Text().append(text, style or None)


def row(label: str, value: str) -> Text:
    return ink(f"{label:<12}", "bright_black").append(value, "default")


def ends(left: Text, right: Text, width: int) -> Text:
    """`left`, shortened where it must be, and `right` at the right edge, which may take two thirds of the line."""
    right = right.copy()
    right.truncate(max(0, max(width * 2 // 3, width - left.cell_len - 2)), overflow="ellipsis")
    left = left.copy()
    left.truncate(max(0, width - right.cell_len - 2 * bool(right)), overflow="ellipsis")
    line = left.append(" " * (width - left.cell_len - right.cell_len))
    return line.append_text(right)


def beside(left: Sequence[Text], right: Sequence[Text], left_width: int, gap: int, rows: int) -> list[Text]:
    lines = []
    for i in range(rows):
        line = left[i].copy() if i < len(left) else Text()
        line.truncate(left_width, overflow="ellipsis")
        if i < len(right) and right[i]:
            line.append(" " * (left_width + gap - line.cell_len)).append_text(right[i])
        lines.append(line)
    return lines


def pad(lines: list[Text], rows: int) -> list[Text]:
    return [*lines[:rows], *[Text()] * (rows - len(lines))]


def cut(line: Text, width: int) -> Text:
    """`line` itself where it fits, so that what has not changed stays the same object."""
    if line.cell_len > width:
        line = line.copy()
        line.truncate(max(0, width), overflow="ellipsis")
    return line


def plain(row: Row) -> str:
    """A row without its colours."""
    text = ""
    for column, piece in row:
        text = text.ljust(column) + piece.plain
    return text.rstrip()
