"""The keyboard and Ctrl-C while a run is watched: single keys without Enter, and an interrupt that saves first.

The terminal is put into cbreak mode for as long as the context lasts and is put back whatever happens in it.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from trainer.events import Controls

HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)  # Windows has none


@contextmanager
def keyboard() -> Iterator[Callable[[float], str]]:
    """Gives `read(seconds)`: the keys pressed within that time, "" where none was. Without a terminal to read from it
    just waits.
    """
    if not sys.stdin or not sys.stdin.isatty():
        yield _wait
    elif os.name == "nt":
        yield _read_windows
    else:
        import termios
        import tty

        fd = sys.stdin.fileno()
        before = termios.tcgetattr(fd)
        try:
            tty.setcbreak(fd)
            yield lambda seconds: _read(fd, seconds)
        finally:
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextmanager
def interrupts(controls: Controls) -> Iterator[list[int]]:
    """Ctrl-C, a polite kill or a lost connection asks the run to save and quit; the second Ctrl-C breaks off at once.

    Gives the descriptors that lead to the terminal, to which more may be added: without it they lead nowhere.
    """
    streams = [1, 2]
    if threading.current_thread() is not threading.main_thread():
        yield streams  # only the main thread may set signal handlers
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if controls.quit and number == signal.SIGINT:
            raise KeyboardInterrupt
        if (
            number == HANGUP
        ):  # nobody reads on, and writing to a terminal that is gone would end the run before it saves
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in streams:
                os.dup2(nowhere, stream)
        controls.quit = True
        controls.pause = False

    asking = [signal.SIGINT, signal.SIGTERM]
    if HANGUP is not None and signal.getsignal(HANGUP) == signal.SIG_DFL:  # nohup ignores it, and is to be left so
        asking.append(HANGUP)
    before = {number: signal.signal(number, ask) for number in asking}
    try:
        yield streams
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def press(key: str, controls: Controls) -> None:
    """What the keys of a run ask for."""
    match key:
        case "s":
            controls.sample = True
        case "c":
            controls.checkpoint = True
        case "p":
            controls.pause = not controls.pause
        case "q":
            controls.quit = True
            controls.pause = False  # a paused run would never get to saving


def _wait(seconds: float) -> str:
    threading.Event().wait(seconds)
    return ""


def _read(fd: int, seconds: float) -> str:
    ready, _, _ = select.select([fd], [], [], seconds)
    if not ready:
        return ""
    pressed = os.read(fd, 64)
    if not pressed:  # the terminal went away; do not spin on its end of file
        return _wait(seconds)
    return (
        "" if pressed.startswith(b"\x1b") else pressed.decode(errors="ignore")
    )  # arrows and mouse reports mean nothing here


def _read_windows(seconds: float) -> str:
    import msvcrt

    for _ in range(max(1, round(seconds / 0.05))):
        if msvcrt.kbhit():  # type: ignore[attr-defined]
            return msvcrt.getwch()  # type: ignore[attr-defined]
        _wait(0.05)
    return ""
