"""Puts frames on a terminal by writing only the lines that changed.

rich's `Live` repaints the whole screen for each frame: with pictures, 100 kB four times a second, which a slow ssh line
and the training thread both feel. A frame here is rows of pieces; a piece that equals what is on the screen is
neither encoded nor sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

from rich.console import Console
from rich.text import Text

from trainer.readers.view.ink import Row

BEGIN, END = (
    "\x1b[?2026h",
    "\x1b[?2026l",
)  # synchronized update: terminals that know it show the frame at once, others ignore it


class Terminal:
    """The alternate screen of `console`; `sent` counts the characters written."""

    def __init__(self, console: Console):
        self.console, self.file, self.sent = console, console.file, 0
        self.size = (0, 0)
        self.rows: list[Row] = []
        self.encoder = Console(
            file=StringIO(),
            force_terminal=True,
            color_system=console.color_system,
            width=10_000,  # type: ignore[arg-type]
            no_color=console.no_color,
            highlight=False,
            legacy_windows=False,
        )

    def open(self) -> None:
        self._write("\x1b[?1049h\x1b[?25l")

    def close(self) -> None:
        self._write("\x1b[0m\x1b[?25h\x1b[?1049l")

    def paint(self, rows: Sequence[Row], size: tuple[int, int]) -> None:
        """Show `rows`, which fill a screen of `size` (columns, rows)."""
        parts = [BEGIN]
        if size != self.size:
            parts.append("\x1b[0m\x1b[2J")
            self.size, self.rows = size, []
        for y, row in enumerate(rows):
            before = self.rows[y] if y < len(self.rows) else ()
            if [column for column, _ in before] != [column for column, _ in row]:
                parts.append(f"\x1b[{y + 1};1H\x1b[K")
                before = tuple((column, Text()) for column, _ in row)
            for (column, text), (_, old) in zip(row, before, strict=True):
                if text is not old and text != old:
                    blanks = " " * (old.cell_len - text.cell_len)
                    parts.append(f"\x1b[{y + 1};{column + 1}H{self._encode(text)}\x1b[0m{blanks}")
        self.rows = list(rows)
        if len(parts) > 1:
            self._write("".join(parts) + END)

    def forget(self) -> None:
        """Repaint everything next time."""
        self.size = (0, 0)

    def _encode(self, line: Text) -> str:
        with self.encoder.capture() as capture:
            self.encoder.print(line, end="", soft_wrap=True)
        return capture.get()

    def _write(self, text: str) -> None:
        self.file.write(text)
        self.file.flush()
        self.sent += len(text)
