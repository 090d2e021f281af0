"""What strangers wrote, as it may be shown: captions, names of files, lines of a log, metadata of a model.

A terminal obeys control characters: a file name can clear the screen, rename the window or hide the rest of a line. Each
is shown as a sign of its own instead, so that widths and lengths stay as they are:

    ESC -> \u241b   line's end -> \u240a   the second block of controls, marks that turn the writing round, bytes that are no text -> \ufffd
"""

from __future__ import annotations

from typing import Any

CONTROLS = {code: 0x2400 + code for code in range(32)} | {9: 32, 0x7F: 0x2421}  # a tab is a blank
UNSEEN = (*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x2028, 0x2029, 0x61C)
SIGNS = CONTROLS | dict.fromkeys(UNSEEN, 0xFFFD) | dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)
LINES = {code: sign for code, sign in SIGNS.items() if code != 10}


def shown(text: str, lines: bool = False) -> str:
    """`text` without anything that a terminal obeys; `lines`: it may have several."""
    return text.translate(LINES if lines else SIGNS)


def all_shown(value: Any, lines: bool = False) -> Any:
    """The same for every text in plain values: lists, dictionaries, numbers."""
    if isinstance(value, str):
        return shown(value, lines)
    if isinstance(value, list):
        return [all_shown(each, lines) for each in value]
    if isinstance(value, dict):
        return {all_shown(key): all_shown(each, lines) for key, each in value.items()}
    return value


def is_text(name: str) -> bool:
    """Whether a name can be written down: one whose bytes are no UTF-8 cannot, nor one with a zero in it."""
    return not any(0xD800 <= ord(letter) < 0xE000 or letter == "\0" for letter in name)
