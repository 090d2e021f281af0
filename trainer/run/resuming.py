"""What a checkpoint belongs to, and whether this run may go on from it.

A checkpoint says which model, photos, class images, settings and versions it is made of. What differs now is told with what
it means: a changed rate or an added photo is the person's wish and said once; a checkpoint of another model, one from
beyond the run's end, or decks that name photos which are gone cannot be gone on from, and are refused with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainer.data.photos import PhotoSet
from trainer.errors import ConfigError
from trainer.events import Notice
from trainer.files.regular import json_object
from trainer.files.whole import tidy
from trainer.models import Parts
from trainer.out import checkpoint
from trainer.prior.prediction import Predictions
from trainer.run.prepare import Run
from trainer.settings.config import Config

MATHEMATICS = ("data", "prior", "train", "lora", "model")  # sections that change what is learned
PLACES = {
    "data.instance_data_dir",
    "prior.class_data_dir",
    "prior.sample_batch_size",
    "model.name",
    "train.num_train_epochs",
}
WRITTEN = re.compile(
    r"config\.toml|log\.jsonl|report\.html|samples|guard|trackers|model(-older(-\d+)?|-\d+-\w+)?|drawn(-\d+)?"
    r"|pytorch_lora_weights\.safetensors|class_images\.json|left-after-.+"
)
FIXED = (
    "train.method",
    "train.optimizer",
    "train.train_text_encoder",
    "train.text_part",
    "lora.rank",
)  # without them nothing fits together


def made_of(run: Run, keep: PhotoSet | Predictions | None) -> dict[str, Any]:
    """What goes into a checkpoint about this run; plain JSON."""
    classes = [photo.digest for photo in keep.photos] if isinstance(keep, PhotoSet) else []
    return {
        "photos": [[photo.digest, photo.prompt, photo.repeats] for photo in run.photos.photos],
        "class_images": classes,
        "settings": mathematics(run.config),
        "versions": versions(),
    }


def mathematics(config: Config) -> dict[str, Any]:
    """Settings that change what is learned. Where the rate is constant, how long it goes on changes no step before."""
    values = config.model_dump(mode="json")
    apart = PLACES | ({"train.max_train_steps"} if config.train.lr_scheduler.startswith("constant") else set())
    return {
        f"{section}.{name}": value
        for section in MATHEMATICS
        for name, value in values[section].items()
        if f"{section}.{name}" not in apart
    }


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "diffusers", "transformers", "accelerate", "safetensors")}


def check(run: Run) -> None:
    """Refuse a checkpoint that this run cannot go on from, before anything is loaded; what merely differs becomes notices."""
    if run.resume is None:
        return
    checkpoint.require_whole(run.resume)
    state, steps = checkpoint.read_state(run.resume), run.config.train.max_train_steps
    if state["step"] > steps:
        raise ConfigError(
            f"{run.resume.name} was written after step {state['step']}, and this run ends with step {steps}",
            f"train longer, such as --max_train_steps {2 * state['step']}, or name an earlier checkpoint",
        )
    if "made_of" in state:  # older checkpoints do not say
        run.notices += [Notice(text, level="warning") for text in _differences(run, state["made_of"])]


def make_room(run: Run) -> Iterator[Notice]:
    """Leave in the run's folder only what belongs to the run that starts now; called before it writes there."""
    wanted, folder = run.config.checkpoint.resume_from_checkpoint, run.folder
    if not run.team.leads or not folder.is_dir():
        return
    tidied(folder)
    if run.resume is not None and run.resume.resolve().parent == folder.resolve():
        if left := checkpoint.leave_behind(run.resume):
            yield Notice(f"What was trained after {run.resume.name} before is in {left} now.")
        return
    begun = checkpoint.found(folder)
    if not begun and (wanted == "latest" or not (folder / "config.toml").is_file()):
        return  # a run that never came to its first checkpoint begins again; a folder without a run stays as it is
    if earlier := checkpoint.set_aside(folder, *written(folder)):
        yield Notice(f"An earlier run is in {earlier} now, whole.")


def tidied(folder: Path) -> None:
    """Finish or remove what a killed run left between its files, in every folder of its own; never through a link."""
    tidy(folder, complete=lambda part: not checkpoint.damage(part))
    places = [folder / "guard", folder / "model", folder / "samples", *(folder / "samples").glob("step-*")]
    for place in places:
        if not place.is_symlink() and not (folder / "samples").is_symlink():
            tidy(place)


def written(folder: Path) -> list[str]:
    """What a run left in `folder` beside its checkpoints, by name; anything else there is the person's."""
    index = folder / "model_index.json"
    pipeline = {*json_object(index, checkpoint.WAY_OUT), index.name} if index.is_file() else set()
    return [path.name for path in sorted(folder.iterdir()) if path.name in pipeline or WRITTEN.fullmatch(path.name)]


def same_model(run: Run, parts: Parts) -> None:
    """Refuse a checkpoint of another model, before anything is drawn with this one."""
    if run.resume is not None and checkpoint.read_state(run.resume)["model"] != parts.digest:
        raise ConfigError(
            f"{run.resume.name} is of another model, or of another version of {run.config.model.name}",
            "put that model back, name it with --model, or start anew in another --output_dir",
        )


def same_class_images(run: Run, keep: PhotoSet | Predictions | None) -> Iterator[Notice]:
    """Class images are there only after the model was loaded. Fewer than the saved deck names are refused."""
    if run.resume is None or not isinstance(keep, PhotoSet):
        return
    before = checkpoint.read_state(run.resume).get("made_of", {}).get("class_images", [])
    now = [photo.digest for photo in keep.photos]
    if len(now) < len(before):
        raise ConfigError(
            f"{run.resume.name} was trained with {len(before)} class images, and there are {len(now)} now",
            f"use --num_class_images {len(before)}, or start anew in another --output_dir",
        )
    if before and now[: len(before)] != before:
        yield Notice(
            f"Class images are not those of {run.resume.name}: the run goes on, but not as it would have.",
            level="warning",
        )


def _differences(run: Run, before: dict[str, Any]) -> Iterator[str]:
    name, now = Path(run.resume or "").name, made_of(run, None)
    there, here = before["photos"], now["photos"]
    if len(here) < len(there):
        raise ConfigError(
            f"{name} was trained with {len(there)} photos, and there are {len(here)} now",
            "put the photos back, or start anew in another --output_dir",
        )
    said = {tuple(row[:1]) for row in here} - {tuple(row[:1]) for row in there}
    if said:
        changed = f"{len(here) - len(there)} photos added" if len(here) > len(there) else f"{len(said)} photos changed"
        yield f"{changed} since {name}: the run goes on, but not as it would have."
    elif here != there:
        yield f"Captions, repeats or the order of the photos changed since {name}: the run goes on, but not as it would have."
    settings = {
        key: (before["settings"].get(key), value)
        for key, value in now["settings"].items()
        if before["settings"].get(key, value) != value
    }
    if fixed := [key for key in FIXED if key in settings]:
        old, new = settings[fixed[0]]
        raise ConfigError(
            f"{name} was trained with {fixed[0]} = {old}, and it is {new} now",
            f"set it back ({run.resume.parent / 'config.toml'} has all), or start anew in another --output_dir",
        )
    if settings:
        words = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in settings.items())
        yield f"Settings changed since {name}: {words}. The run goes on with the new ones."
    others = [
        f"{key} {old} -> {now['versions'][key]}"
        for key, old in before["versions"].items()
        if now["versions"].get(key) != old
    ]
    if others:
        yield f"Other versions than {name} was written with: {', '.join(others)}. Equal bits are not promised."
