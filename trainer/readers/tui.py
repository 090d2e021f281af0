"""The screen of a run: `show(events, controls)` draws every event and gives the last one back.

Iterating the events does the training, so that stays in the calling thread; one more thread reads the keys and draws,
and rests a hundred times as long as it drew, which keeps the screen under one percent of the machine whatever the
terminal. Where the output is no terminal, or NO_COLOR is set, the same events become plain lines.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Literal, TextIO

from rich.console import Console

from trainer.events import Controls, Event, Finished, Notice, Said
from trainer.readers.log import clean
from trainer.readers.stray import Stray
from trainer.readers.view.dashboard import frame
from trainer.readers.view.keys import interrupts, keyboard, press
from trainer.readers.view.lines import Thinner, lines
from trainer.readers.view.panels import View
from trainer.readers.view.state import RunState, apply
from trainer.readers.view.terminal import Terminal

FRAME_SECONDS = 0.25
SHARE = 0.01  # of the time that may go into drawing
Mode = Literal["auto", "on", "off"]


def show(
    events: Iterable[Event], controls: Controls, mode: Mode = "auto", stray: Stray | None = None
) -> Finished | None:
    """Show the run as it happens: the dashboard or plain lines. Ctrl-C asks `controls` to save and quit, twice breaks
    off. `stray` collects what libraries say under the dashboard, for whoever made it and passes it on (see stray.py).
    """
    with interrupts(controls) as streams:
        if wants_dashboard(mode, sys.stdout):
            state = dashboard(events, controls, stray=stray, streams=streams)
        else:
            state = plain(events)
    return state.finished


def wants_dashboard(mode: Mode, output: TextIO) -> bool:
    """A full screen needs a terminal that can move its cursor; NO_COLOR asks for plain lines unless the dashboard is
    asked for by name.
    """
    able = output.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
    if os.name == "nt":
        able = output.isatty()
    able = able and (getattr(output, "encoding", None) or "utf-8").lower().replace("-", "") in (
        "utf8",
        "utf16",
        "cp65001",
    )
    return able and mode != "off" and (mode == "on" or not os.environ.get("NO_COLOR"))


def plain(events: Iterable[Event], output: TextIO | None = None) -> RunState:
    """Each event as lines that grep can read."""
    output = output or sys.stdout
    state, thinner = RunState(), Thinner()
    for event in map(clean, events):
        state = apply(state, event)
        for line in lines(state, event, thinner):
            print(line, file=output, flush=True)
    if state.finished and state.finished.text:
        print(state.finished.text, file=output, flush=True)
    return state


def dashboard(
    events: Iterable[Event],
    controls: Controls,
    *,
    watching: bool = False,
    console: Console | None = None,
    stray: Stray | None = None,
    streams: list[int] | None = None,
) -> RunState:
    """The full screen until the events end; afterwards its essence as plain lines, which stay in the scrollback."""
    stray = stray or Stray()
    with stray.caught(streams) as output:
        screen, thinner = Screen(console or Console(file=output), controls, watching, stray), Thinner()
        with screen:
            for event in map(clean, events):
                screen.state = apply(screen.state, event)
                if screen.broken:
                    screen.say(lines(screen.state, event, thinner))
            while watching and not controls.quit:  # the last frame stays until the person leaves
                time.sleep(0.1)
    summary(screen.state, stray, console.file if console else sys.stdout)
    return screen.state


def summary(state: RunState, stray: Stray, output: TextIO) -> None:
    """What should outlive the screen."""
    thinner = Thinner()
    kept = [
        *stray.take()[-20:],  # what no log has
        *state.warnings,
        *state.checkpoints[-1:],
        *state.samples[-1:],
        *state.exports,
        *([state.finished] if state.finished else []),
    ]
    for event in kept:
        for line in lines(state, event, thinner):
            print(line, file=output)
    if state.said:
        print(f"Libraries said {len(state.said)} things meanwhile: see log.jsonl, or the report.", file=output)
    if state.finished and state.finished.text:
        print(state.finished.text, file=output)
    output.flush()


class Screen:
    """The drawing thread; `state` is replaced from outside. Where a run is only watched, `controls.quit` means leaving
    the screen. Once a frame could not be drawn it is `broken`: events are plain lines from then on, and keys work as before.
    """

    def __init__(self, console: Console, controls: Controls, watching: bool, stray: Stray):
        self.console, self.controls, self.watching, self.stray = console, controls, watching, stray
        self.broken = False
        self.state, self.help, self.large = RunState(), False, False
        self.terminal = Terminal(console)
        self.drawn_seconds = 0.0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run, name="screen", daemon=True)

    def __enter__(self) -> Screen:
        self.terminal.open()
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        if not self.broken:
            self.terminal.close()

    def say(self, said: Iterable[str]) -> None:
        """Lines in place of the picture."""
        for line in said:
            print(line, file=self.console.file, flush=True)

    def _run(self) -> None:
        with keyboard() as read:
            due = 0.0
            while not self.done.is_set():
                now = time.monotonic()
                # a new size is answered at once, as a key is
                if not self.broken and (now >= due or self.size != self.terminal.size):
                    due = now + FRAME_SECONDS
                    with ExitStack() as stack:
                        stack.push(self._break)
                        due = now + max(FRAME_SECONDS, self.draw() / SHARE)
                keys = read(min(0.1, max(0.0, due - now)))
                for key in keys:
                    self.press(key)
                    due = 0.0  # a key is answered at once

    def _break(self, kind: object, error: BaseException | None, trace: object) -> bool:
        """A frame that cannot be drawn costs the picture, not the hold on the run: drawing is the least of what this does."""
        if not isinstance(error, Exception):
            return False
        text = f"The screen could not be drawn ({type(error).__name__}: {error}): plain lines from here on, keys work as before."
        self.stray.hear(Notice(text, "please report it, with log.jsonl", "warning"), text)
        self.stray.hear(Said(trace := "".join(traceback.format_exception(error))), trace)
        self.terminal.close()
        self.broken = True
        return True

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows the terminal has now. rich prefers COLUMNS and LINES, which stay as they were when somebody
        drags the window's corner (readline leaves them in the environment of whatever it starts)."""
        try:
            columns, rows = os.get_terminal_size(self.console.file.fileno())
        except (OSError, ValueError):  # no terminal, or a file without a descriptor
            columns, rows = 0, 0
        return (columns, rows) if columns and rows else tuple(self.console.size)  # a serial line says 0 x 0

    def draw(self) -> float:
        """Paint the state there is; gives the processor seconds it took."""
        before = time.thread_time()
        width, height = self.size
        asked = (
            ()
            if self.watching
            else tuple(n for n in ("sample", "checkpoint", "pause", "quit") if getattr(self.controls, n))
        )
        view = View(
            now=time.time(),
            pictures=self.console.color_system == "truecolor" and not self.console.no_color,
            watching=self.watching,
            help=self.help,
            large=self.large,
            asked=asked,
        )
        self.terminal.paint(frame(self.state, width, height, view), (width, height))
        cost = time.thread_time() - before
        self.drawn_seconds += cost
        return cost

    def press(self, key: str) -> None:
        if key in "?h" or self.help:
            self.help = not self.help
        elif key == "v":
            self.large = not self.large
        elif not self.watching or key == "q":
            press(key, self.controls)
        if key == "\x0c":  # Ctrl-L
            self.terminal.forget()
