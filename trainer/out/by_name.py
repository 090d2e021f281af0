"""One file under a name of one's own, where kohya's scripts leave it.

    --output_dir out --output_name my_dog    ->    out/my_dog.safetensors

It is the file that such a script would have written: the adapter under kohya's names, or the checkpoint of a full training.
Everything else stays in out/model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from trainer.events import Event, Exported
from trainer.files.whole import place
from trainer.out import export


def named(events: Iterable[Event], run: Path, name: str, method: str) -> Iterator[Event]:
    """The events of an export into run/model, of which one file becomes run/NAME.safetensors."""
    wanted = "single file" if method == "full" else "lora kohya"
    target = run / f"{name}.safetensors"
    return export.moved(events, run / "model", lambda made: _under(made, target) if made.format == wanted else made)


def _under(event: Exported, target: Path) -> Exported:
    made = Path(event.path)
    place(made, target)
    usage = event.usage.replace(str(made), str(target)).replace(made.name, target.name)
    return replace(event, path=str(target), usage=usage)
