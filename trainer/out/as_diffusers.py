"""The output folder as diffusers' scripts leave it, so that what people built around those scripts finds everything.

out/unet, vae, ..., model_index.json    the pipeline itself; of an adapter out/pytorch_lora_weights.safetensors
out/checkpoint-500/unet                 what that checkpoint trained, as `from_pretrained(out, subfolder=...)` reads it
out/config.toml, log.jsonl, step-...    ours, beside it
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from trainer.events import Event, Exported
from trainer.files.whole import place
from trainer.models.base import Parts, Source
from trainer.out import export
from trainer.settings.config import Config


def spread(events: Iterable[Event], run: Path) -> Iterator[Event]:
    """The events of an export into run/model, whose pipeline or adapter goes up into the run folder itself."""
    model = run / "model"
    return export.moved(events, model, lambda made: _up(made, model, run))


def _up(event: Exported, model: Path, run: Path) -> Exported:
    made = Path(event.path)
    usage = event.usage.replace(str(model / "diffusers"), str(run))
    if event.format == "diffusers":
        _place_all(made, run)
        return replace(event, path=str(run), usage=usage)
    if event.format == "lora diffusers":
        place(made, run / made.name)
        return replace(event, path=str(run / made.name), usage=usage.replace(repr(str(model)), repr(str(run))))
    return replace(event, usage=usage)


def _place_all(made: Path, run: Path) -> None:
    """Everything in `made`, the index last: a folder with an index is a whole pipeline."""
    for path in sorted(made.iterdir(), key=lambda path: path.name == "model_index.json"):
        place(path, run / path.name)
    made.rmdir()


def readable(parts: Parts, weights: export.Weights, point: Path, config: Config) -> None:
    """Write what is trained into the checkpoint `point`, as a folder for each model or as an adapter."""
    if config.train.method != "full":
        list(export.write(parts, weights, point, ["lora_diffusers"], config.export.precision))
        return
    text = bool(config.train.train_text_encoder)
    learning = replace(
        parts,
        origin=Source(""),  # what is left out is not read again
        vae=None,
        tokenizers=[],
        text_encoders=parts.text_encoders if text else [],
        spare=parts.spare if text else [],
    )
    list(export.write(learning, weights, point, ["diffusers"], config.export.precision))
    made = point / "diffusers"
    for path in made.iterdir():
        if path.is_dir() and path.name != "scheduler":
            place(path, point / path.name)
    shutil.rmtree(made)
