"""The full-screen view of a run: `frame(state, width, height, view)` gives exactly `height` lines, from 80x24 up.

Small screens get one column with the curves side by side; wide ones two columns, with phases, meters and pictures on
the right. It is a pure function of the state, so a snapshot test, a live run and a replayed log show the same.
"""

from __future__ import annotations

from rich.text import Text

from trainer.readers.view.ink import Row, cut, ink
from trainer.readers.view.panels import (
    ACCENT,
    HELP,
    LABEL,
    WATCH_HELP,
    View,
    curves_beside,
    curves_stacked,
    footer,
    header,
    last_pictures,
    memory,
    meter_line,
    meter_table,
    notices,
    phase_strip,
    phase_table,
    progress,
    saved,
)
from trainer.readers.view.pictures import gallery
from trainer.readers.view.state import RunState

GAP = 4  # columns between the two halves of a wide screen
NARROWEST = 12  # columns that bars and folded lines need; while a window's corner is dragged there may be fewer


def frame(state: RunState, width: int, height: int, view: View) -> list[Row]:
    """The screen: `height` rows of pieces none of which reaches beyond `width`."""
    if width < NARROWEST:
        wider = frame(state, NARROWEST, height, view)
        return [tuple((column, cut(text, width - column)) for column, text in row if column < width) for row in wider]
    inner = width - 2
    top = [header(state, inner, view), phase_strip(state, inner)]
    bottom = [*[Text()] * (height >= 30), *notices(state, inner, 7 if height >= 40 else 3), footer(state, inner, view)]
    room = height - len(top) - len(bottom) - 1
    right: list[Text] = []
    split = inner  # where the left column ends
    if view.help:
        left = help_page(view)
    elif view.large:
        left = large_pictures(state, inner, room, view)
    elif width >= 120 and height >= 30:
        split = inner * 54 // 100
        left, right = left_column(state, split, room), right_column(state, inner - split - GAP, room, view)
    else:
        left = one_column(state, inner, room, view)
    rows: list[Row] = [((1, cut(line, inner)),) for line in (*top, Text())]
    for i in range(room):
        pieces = [(1, cut(left[i], split))] if i < len(left) else [(1, Text())]
        if i < len(right) and right[i]:
            pieces.append((1 + split + GAP, cut(right[i], inner - split - GAP)))
        rows.append(tuple(pieces))
    rows += [((1, cut(line, inner)),) for line in bottom]
    return rows[:height]


def one_column(state: RunState, width: int, room: int, view: View) -> list[Text]:
    """Progress, curves, memory, then what was saved and drawn; the curves take the space that is left, pictures that of
    a tall screen.
    """
    head = [*progress(state, width), Text()]
    tail = [Text(), *memory(state, width), *saved(state, width)]
    meters = meter_line(state, width)
    free = room - len(head) - len(tail) - len(meters)
    pictures = last_pictures(state, width, min(free - 8, 14), view) if free >= 16 and state.steps else []
    return [*head, *curves_beside(state, width, free - len(pictures), view), *pictures, *tail, *meters]


def left_column(state: RunState, width: int, room: int) -> list[Text]:
    """What moves: progress, the curves below each other, memory at the bottom."""
    top, bottom = [*progress(state, width), Text()], memory(state, width)
    curves = curves_stacked(state, width, room - len(top) - len(bottom) - 1)
    return [*top, *curves, Text(), *bottom]


def right_column(state: RunState, width: int, room: int, view: View) -> list[Text]:
    """What stands: phases, meters, what was saved, pictures."""
    lines = [*phase_table(state, width), Text(), *meter_table(state, width), *saved(state, width), Text()]
    return [*lines, *last_pictures(state, width, room - len(lines), view)]


def large_pictures(state: RunState, width: int, room: int, view: View) -> list[Text]:
    if not state.samples:
        return [ink("no pictures yet", LABEL)]
    sample = state.samples[-1]
    pictures = gallery(tuple(sample.paths), width, room - 1) if view.pictures else ()
    title = ink(f"step {sample.step}", "bold").append("  " + " · ".join(dict.fromkeys(sample.prompts)), LABEL)
    return [title, *(pictures or [ink(path) for path in sample.paths])]


def help_page(view: View) -> list[Text]:
    lines = []
    for key, name, what in WATCH_HELP if view.watching else HELP:
        line = ink(f"  {key}  ", "bold " + ACCENT).append(f"{name:<16}").append(what, LABEL)
        lines.append(line)
    return lines
