"""Previews: fixed prompts with fixed seeds, drawn from the weights as they are, saved with a contact sheet.

The same prompt and seed give comparable pictures at every step, so a row of sheets shows learning, overfitting
and drift.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from trainer.draw.painter import Painter
from trainer.draw.sheet import contact_sheet
from trainer.events import Sampled, Stage
from trainer.files import image
from trainer.files.whole import whole
from trainer.machine.phase import Phase

Rows = Sequence[tuple[str, int]]  # (prompt, seed) of each picture


def preview(painter: Painter, rows: Rows, folder: Path, step: int) -> Stage[list[Image.Image]]:
    """Draw each (prompt, seed) of `rows` into `folder`/step-000400/; a Sampled event says where they are."""
    prompts, seeds = [prompt for prompt, _ in rows], [seed for _, seed in rows]
    phase = Phase("sample", painter.device)
    yield phase.start(len(rows) * painter.look.steps, f"{len(rows)} pictures after step {step}")
    found = yield from painter.paint(prompts, seeds, phase)
    *paths, sheet = _places(rows, Path(folder), step)
    sheet.with_suffix("").mkdir(parents=True, exist_ok=True)
    for picture, path in zip(found, paths, strict=True):
        with whole(path) as part:
            picture.save(part, "PNG")
    contact_sheet(found, [f"{prompt}  ({seed})" for prompt, seed in rows], sheet, title=f"step {step}")
    yield Sampled(step, [str(path) for path in paths], prompts, seeds, str(sheet))
    yield phase.end(f"{len(paths)} pictures", str(folder))
    return found


def drawn(rows: Rows, folder: Path, step: int) -> bool:
    """Whether the pictures of `rows` after `step`, and their sheet, are all in `folder` and whole."""
    return all(_is_whole(path) for path in _places(rows, folder, step))


def _places(rows: Rows, folder: Path, step: int) -> list[Path]:
    """Where each picture goes, and, last, the sheet: folder/step-000400/00-a-dog-7.png, ..., folder/step-000400.png."""
    place = folder / f"step-{step:06d}"
    named = [f"{index:02d}-{slug(prompt)}-{seed}.png" for index, (prompt, seed) in enumerate(rows)]
    return [*(place / name for name in named), folder / f"{place.name}.png"]


def _is_whole(path: Path) -> bool:
    try:
        with image.opened(path) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError, EOFError):  # what Pillow raises for a PNG of ours that got damaged
        return False
    return True


def slug(prompt: str, length: int = 40) -> str:
    """A prompt as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:length].strip("-") or "empty"
