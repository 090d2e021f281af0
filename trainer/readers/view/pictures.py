"""Pictures in a terminal: the upper half block, coloured twice, makes two square pixels of one cell.

A picture is read and scaled once for each size it is shown at; a file that is gone or broken is simply not shown.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from rich.color import Color
from rich.style import Style
from rich.text import Span, Text

from trainer.files import image


@lru_cache(maxsize=64)
def half_blocks(path: str, columns: int, rows: int) -> tuple[Text, ...]:
    """The picture at `path`, as large as fits into `columns` x `rows` cells; () where it cannot be read."""
    from PIL import Image

    if not os.path.isfile(path) or columns < 2 or rows < 1:
        return ()
    try:
        with image.opened(Path(path)) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ()
    scale = min(columns / picture.width, 2 * rows / picture.height)
    width, height = max(1, round(picture.width * scale)), max(2, round(picture.height * scale / 2) * 2)
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    pixels = picture.load()
    assert pixels is not None
    lines = []
    for y in range(0, height, 2):
        colours = [
            Style.from_color(Color.from_rgb(*pixels[x, y]), Color.from_rgb(*pixels[x, y + 1])) for x in range(width)
        ]
        lines.append(Text("▀" * width, spans=[Span(x, x + 1, colour) for x, colour in enumerate(colours)]))
    return tuple(lines)


@lru_cache(maxsize=16)
def gallery(paths: tuple[str, ...], columns: int, rows: int, gap: int = 2) -> tuple[Text, ...]:
    """As many of `paths` as can be shown at a useful size, side by side and in several rows where that makes them
    larger.
    """
    best = max(range(1, len(paths) + 1), key=lambda across: _side(len(paths), across, columns, rows, gap), default=0)
    if not best:
        return ()
    down = -(-len(paths) // best)
    cell_columns, cell_rows = (columns - gap * (best - 1)) // best, (rows - (down - 1)) // down
    lines: list[Text] = []
    for start in range(0, len(paths), best):
        pictures = [
            picture for path in paths[start : start + best] if (picture := half_blocks(path, cell_columns, cell_rows))
        ]
        if not pictures:
            continue
        if lines:
            lines.append(Text())
        for y in range(max(len(picture) for picture in pictures)):
            line = Text()
            for i, picture in enumerate(pictures):
                line.append(" " * (gap if i else 0))
                line.append_text(picture[y] if y < len(picture) else Text(" " * picture[0].cell_len))
            lines.append(line)
    return tuple(lines)


def _side(count: int, across: int, columns: int, rows: int, gap: int) -> float:
    """Side in pixels of one square picture when `across` stand side by side."""
    down = -(-count // across)
    return min((columns - gap * (across - 1)) / across, 2 * (rows - (down - 1)) / down)
