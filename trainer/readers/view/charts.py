"""Graphics out of characters: curves in braille dots (2 x 4 to a cell) and bars with marks.

A curve is resampled to the dots there are and drawn as a connected line; the caller gives the range, so that several
curves share one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.text import Text

DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # braille bit of (column, row) within a cell


def braille(values: Sequence[float], width: int, height: int, low: float, high: float) -> list[str]:
    """`height` lines of `width` cells showing `values` from left to right; nan leaves a gap."""
    cells = [[0] * width for _ in range(height)]
    columns, rows = width * 2, height * 4
    before: int | None = None
    for x in range(min(columns, len(values)) if len(values) < columns else columns):
        value = values[x] if len(values) < columns else values[round(x * (len(values) - 1) / (columns - 1))]
        if math.isnan(value):
            before = None
            continue
        share = (value - low) / (high - low) if high > low else 0.5
        y = round((1 - min(1.0, max(0.0, share))) * (rows - 1))
        for dot in range(min(y, before if before is not None else y), max(y, before if before is not None else y) + 1):
            if dot != before or dot == y:
                cells[dot // 4][x // 2] |= DOTS[x % 2][dot % 4]
        before = y
    return ["".join(chr(0x2800 + bits) if bits else " " for bits in row) for row in cells]


def limits(values: Sequence[float]) -> tuple[float, float]:
    """A range that holds `values` with a little air, and is never empty; losses do not reach below zero."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    air = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return max(0.0, low - air) if low >= 0 else low - air, high + air


def sparkline(values: Sequence[float], width: int) -> str:
    """One line of braille for the last `2 * width` values."""
    shown = list(values)[-2 * width :]
    return braille(shown, width, 1, *limits(shown))[0]


def bar(
    width: int,
    end: float,
    fills: Sequence[tuple[float, str]],
    marks: Sequence[tuple[float, str]] = (),
    rest: str = "grey23",
) -> Text:
    """A line from 0 to `end`: `fills` are (up to, style) from left to right, `marks` (position, style) are drawn over
    it.
    """
    styles = [rest] * width
    start = 0
    for upto, style in fills:
        stop = min(width, round(width * upto / end)) if end > 0 else 0
        styles[start:stop] = [style] * max(0, stop - start)
        start = max(start, stop)
    characters = ["━"] * width
    for position, style in marks:
        if end > 0 and position > 0:
            at = min(width - 1, max(0, round(width * position / end) - 1))
            characters[at], styles[at] = "┃", style
    text = Text()
    start = 0
    for i in range(1, width + 1):
        if i == width or styles[i] != styles[start]:
            text.append("".join(characters[start:i]), styles[start])
            start = i
    return text
