"""Output that outlives its reader: `| head`, a `tee` that died, a full disk behind `>`, a stdout that was never open.

A run is worth more than its lines on a screen. Where writing fails, that stream leads nowhere from then on, it is said once,
and the run goes on to its end: all of it is in the run's log, and the exit code is the run's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast


class Lasting:
    """`stream`, until it takes nothing any more; then nowhere. `gone` is told why."""

    def __init__(self, stream: TextIO, gone: Callable[[str], None]):
        self._stream, self._gone = stream, gone

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lead_nowhere(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lead_nowhere(error)

    def _lead_nowhere(self, error: OSError) -> None:
        """What is still in the stream's buffer goes there, too, or leaving Python would fail over it."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        self._gone(error.strerror or str(error))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting(gone: Callable[[str], None]) -> Iterator[None]:
    """Both streams of Python, for as long as the block lasts."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, Lasting(stream, gone)) for stream in before)
    try:
        yield
        sys.stdout.flush()
    finally:
        sys.stdout, sys.stderr = before


def fill_closed() -> None:
    """Streams that whoever started us closed lead nowhere. Left closed, the next file that is opened takes their number,
    and what a library prints is written into a checkpoint."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115  for as long as the program runs
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
