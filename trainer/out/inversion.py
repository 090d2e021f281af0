"""The subject's learned word as a file of its own: a textual inversion, as ComfyUI, the WebUIs and diffusers read it.

In a whole model the word stands in the table of words as well. Beside an adapter this file is the other half of what was
learned: without it the name means what it meant before.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import save_file

from trainer.events import Event, Notice
from trainer.files.whole import whole
from trainer.models import Parts, word
from trainer.out.export import Weights, again


def write(parts: Parts, weights: Weights, folder: Path, identifier: str) -> Iterator[Event]:
    """FOLDER/identifier.safetensors where the word learned alone; nothing else."""
    if not (known := word.words(parts)):
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{identifier.replace('/', '-').replace(' ', '-')}.safetensors"
    with whole(path) as part:
        save_file(word.inversion(again(weights), known), part)
    how = f"pipe.load_textual_inversion({str(path)!r}, token={identifier!r})"
    yield Notice(f"The word {identifier} by itself: {path} (ComfyUI: embedding:{path.stem}; diffusers: {how}).")
