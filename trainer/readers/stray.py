"""What libraries say while the dashboard has the screen: into the run's log, each text once, and never over the picture.

Three ways lead to a terminal and all are closed: Python's `warnings`, Python's streams (print, log handlers, progress bars),
and the descriptors 1 and 2 themselves, which C++ and child processes write to. The descriptors lead into a file
rather than a pipe: a library that writes more than a pipe holds, while it keeps Python from reading, would wait for ever.
`heard(events, stray)` puts what arrived between the events of the run, so that log, report and screen read one stream.
"""

from __future__ import annotations

import codecs
import ctypes
import logging
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from io import TextIOBase
from pathlib import Path
from typing import BinaryIO, TextIO

from trainer.events import Event, Notice, Said

OURS = str(Path(__file__).resolve().parent.parent)
CHUNK = 1 << 16


class Stray(TextIOBase):
    """Takes texts; `take()` gives those that are new. Of a line that is redrawn with \\r only the last state counts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # any thread of any library may write
        self._seen: set[str] = set()
        self._waiting: list[Event] = []
        self._rest = {"stream": "", "descriptor": ""}  # lines that have not ended
        self._file: BinaryIO | None = None  # where descriptors 1 and 2 lead
        self._position = 0
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._beyond: TextIO | None = None  # once the screen has gone, what a handler still writes here goes there

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._beyond is not None:
            return self._beyond.write(text)
        self._lines("stream", text)
        return len(text)

    def flush(self) -> None:
        if self._beyond is not None:
            self._beyond.flush()

    def hear(self, event: Event, text: str) -> None:
        """Keep `event` unless `text` was heard before."""
        with self._lock:
            if text not in self._seen:
                self._seen.add(text)
                self._waiting.append(event)

    def take(self) -> list[Event]:
        """What was said since the last time."""
        self._read()
        with self._lock:
            taken, self._waiting = self._waiting, []
        return taken

    def _read(self) -> None:
        """What has arrived at the descriptors, and what C holds back because they lead to no terminal."""
        if self._file is not None:
            self._flush()
        while self._file is not None and (read := os.pread(self._file.fileno(), CHUNK, self._position)):
            self._position += len(read)
            self._lines("descriptor", self._decode(read))

    def _lines(self, source: str, text: str) -> None:
        with self._lock:
            *lines, rest = (self._rest[source] + text).split("\n")
            self._rest[source] = rest.rsplit("\r", 1)[-1]
        for line in lines:
            line = line.rstrip().rsplit("\r", 1)[-1]
            if line.strip():
                self.hear(Said(line), line)

    @contextmanager
    def caught(self, streams: list[int] | None = None) -> Iterator[TextIO]:
        """Everything that would reach the terminal comes here meanwhile; gives the stream that still leads to the screen.

        `streams`: descriptors that a lost terminal is to be taken from; those opened here join them.
        """
        self._beyond = None
        with self._warnings(), self._descriptors([] if streams is None else streams) as screen, self._streams():
            yield screen
        for source in self._rest:  # what has not ended with a line's end is a line, too
            self._lines(source, "\n")

    @contextmanager
    def _warnings(self) -> Iterator[None]:
        before = warnings.showwarning

        def show(message, category, filename, lineno, file=None, line=None) -> None:
            if file is not None:
                return before(message, category, filename, lineno, file, line)
            text = str(message)
            if str(filename).startswith(OURS):  # our own are meant for the person
                self.hear(Notice(text, level="warning"), text)
            else:
                self.hear(Said(f"{category.__name__}: {text} ({filename}:{lineno})", "warning"), text)
            return None

        warnings.showwarning = show
        try:
            yield
        finally:
            if warnings.showwarning is show:
                warnings.showwarning = before

    @contextmanager
    def _streams(self) -> Iterator[None]:
        before: tuple[TextIO, TextIO] = (sys.stdout, sys.stderr)
        handlers = [
            (handler, handler.stream)
            for logger in [logging.root, *logging.root.manager.loggerDict.values()]
            for handler in getattr(logger, "handlers", ())
            if isinstance(handler, logging.StreamHandler) and handler.stream in before
        ]
        try:
            sys.stdout = sys.stderr = self  # type: ignore[assignment]
            for handler, _ in handlers:
                handler.setStream(self)
            yield
        finally:
            sys.stdout, sys.stderr = before
            for handler, stream in handlers:
                handler.setStream(stream)
            self._beyond = before[1]

    @contextmanager
    def _descriptors(self, streams: list[int]) -> Iterator[TextIO]:
        try:
            kept = {number: os.dup(number) for number in (1, 2)}
        except OSError:  # a window without a console has none
            kept = {}
        if not kept or os.name == "nt":  # Windows finds its console through descriptor 1
            yield sys.stdout
            return
        self._flush()
        screen = os.fdopen(
            os.dup(kept[1]), "w", encoding=getattr(sys.stdout, "encoding", None) or "utf-8", errors="replace"
        )
        ours = [*kept.values(), screen.fileno()]
        streams += ours
        with tempfile.TemporaryFile(buffering=0) as self._file:
            self._position = 0
            for number in kept:
                os.dup2(self._file.fileno(), number)
            try:
                yield screen
            finally:
                self._read()
                for number, where in kept.items():
                    os.dup2(where, number)
                self._file = None
                streams[:] = [number for number in streams if number not in ours]
                screen.close()
                for where in kept.values():
                    os.close(where)

    @staticmethod
    def _flush() -> None:
        """What Python and C hold back belongs to where it was written, not to where the descriptor leads next."""
        for stream in (sys.__stdout__, sys.__stderr__):
            if stream is not None:
                stream.flush()
        ctypes.CDLL(None).fflush(None)


def heard(events: Iterable[Event], stray: Stray) -> Generator[Event, None, None]:
    """The same events, before each what was said until then."""
    try:
        for event in events:
            yield from stray.take()
            yield event
        yield from stray.take()
    except GeneratorExit:
        raise
    except BaseException:  # what was said before a fault often explains it
        yield from stray.take()
        raise
    finally:
        if isinstance(events, Generator):
            events.close()
