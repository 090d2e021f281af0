"""Entries of `data.subsets`: several folders of photos, each with how often an epoch shows it and what it is called.

"photos/cat"    "10 x photos/cat"    "10 x photos/cat = a photo of sks cat"
"""

from __future__ import annotations

import re

from trainer.errors import ConfigError


def subset(text: str) -> tuple[int | None, str, str]:
    """(repeats, folder, prompt); no repeats means those that folders' names give, no prompt the prompt of all photos."""
    match = re.fullmatch(r"(?:(\d+)\s*x\s+)?(.+?)(?:\s+=\s+(.+))?", text.strip())
    if not match:
        raise ConfigError(
            f"data.subsets: {text!r} names no folder", "write 'REPEATS x FOLDER' or 'REPEATS x FOLDER = PROMPT'"
        )
    return int(match[1]) if match[1] else None, match[2], match[3] or ""


def entry(repeats: object, folder: object, prompt: object = "") -> str:
    times = "" if repeats is None else f"{repeats} x "
    return f"{times}{folder}" + (f" = {prompt}" if prompt else "")
