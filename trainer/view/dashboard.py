"""The full-screen view of a run: `frame(state, width, height, view)` gives exactly `height` lines, from 80x24 up.

Small screens get one column with the curves side by side; wide ones two columns, with phases, meters and pictures on
the right. It is a pure function of the state, so a snapshot test, a live run and a replayed log show the same.
"""

from __future__ import annotations

from rich.text import Text

from .ink import beside, fit, ink
from .panels import (
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
from .pictures import gallery
from .state import RunState


def frame(state: RunState, width: int, height: int, view: View) -> list[Text]:
    """The screen, `height` lines none of which is wider than `width`."""
    inner = width - 2
    top = [header(state, inner, view), phase_strip(state, inner)]
    bottom = [*[Text()] * (height >= 30), *notices(state, inner, 7 if height >= 40 else 3), footer(state, inner, view)]
    room = height - len(top) - len(bottom) - 1
    if view.help:
        body = help_page(view)
    elif view.large:
        body = large_pictures(state, inner, room, view)
    elif width >= 120 and height >= 30:
        body = two_columns(state, inner, room, view)
    else:
        body = one_column(state, inner, room, view)
    body = [Text(), *body][: room + 1]
    lines = [*top, *body, *[Text()] * (room + 1 - len(body)), *bottom]
    return [fit(line, width) for line in lines[:height]]


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


def two_columns(state: RunState, width: int, room: int, view: View) -> list[Text]:
    left_width = width * 54 // 100
    right_width = width - left_width - 4
    memory_lines = memory(state, left_width)
    left = [*progress(state, left_width), Text()]
    left += curves_stacked(state, left_width, room - len(left) - len(memory_lines) - 1)
    left += [Text()] * (room - len(left) - len(memory_lines)) + memory_lines
    right = [*phase_table(state, right_width), Text(), *meter_table(state, right_width), *saved(state, right_width)]
    right += [Text(), *last_pictures(state, right_width, room - len(right) - 1, view)]
    return beside(left, right, left_width, 4, room)


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
