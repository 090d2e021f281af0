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
from trainer.files.whole import whole
from trainer.machine.phase import Phase


def preview(painter: Painter, rows: Sequence[tuple[str, int]], folder: Path, step: int) -> Stage[list[Image.Image]]:
    """Draw each (prompt, seed) of `rows` into `folder`/step-000400/; a Sampled event says where they are."""
    prompts, seeds = [prompt for prompt, _ in rows], [seed for _, seed in rows]
    place = Path(folder) / f"step-{step:06d}"
    phase = Phase("sample", painter.device)
    yield phase.start(len(rows) * painter.look.steps, f"{len(rows)} pictures after step {step}")
    pictures = yield from painter.paint(prompts, seeds, phase)
    place.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, (picture, (prompt, seed)) in enumerate(zip(pictures, rows, strict=True)):
        paths.append(str(place / f"{index:02d}-{slug(prompt)}-{seed}.png"))
        with whole(Path(paths[-1])) as part:
            picture.save(part, "PNG")
    sheet = _sheet(Path(folder), step)
    contact_sheet(pictures, [f"{prompt}  ({seed})" for prompt, seed in rows], sheet, title=f"step {step}")
    yield Sampled(step, paths, prompts, seeds, str(sheet))
    yield phase.end(f"{len(paths)} pictures", str(folder))
    return pictures


def drawn(folder: Path, step: int) -> bool:
    """Whether all pictures of `step` are in `folder`: the sheet is written last."""
    return _sheet(folder, step).is_file()


def _sheet(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}.png"


def slug(prompt: str, length: int = 40) -> str:
    """A prompt as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:length].strip("-") or "empty"
