"""Blanks filled in: what the person left open is decided by the model's family, the photos and the built-in demo.

`settle` returns a configuration without open learning settings, and says for each one who decided. Memory settings stay
open: they are the planner's.
"""

from __future__ import annotations

import json
import math
import time
from importlib.resources import files
from pathlib import Path

from trainer.config import Config
from trainer.data import PhotoSet, class_prompt, instance_prompt
from trainer.models.base import Family

HUB_DEFAULT = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SUBJECTS = Path(str(files("trainer"))) / "assets" / "demo" / "subjects"


def choose_model(config: Config, origin: dict[str, str]) -> tuple[Config, dict[str, str]]:
    """The model and the photos: the built-in ones where none are named, SD 1.5 from the hub for one's own photos."""
    chosen = {}
    if config.data.instance_data_dir is None:
        subject, facts = next(iter(json.loads((SUBJECTS / "subjects.json").read_text()).items()))
        chosen["data.instance_data_dir"] = str(SUBJECTS / subject)
        for knob in ("class_name", "identifier"):
            if f"data.{knob}" not in origin:
                chosen[f"data.{knob}"] = facts[knob]
        if not config.sample.validation_prompt:
            chosen["sample.validation_prompt"] = _demo_prompts(config, facts)
        if config.model.name is None:
            chosen["model.name"] = "demo"
    elif config.model.name is None:
        chosen["model.name"] = HUB_DEFAULT
    return _with(config, origin, chosen, "built-in demo" if "data.instance_data_dir" in chosen else "default")


def _demo_prompts(config: Config, facts: dict) -> list[str]:
    subject, kind = facts["identifier"], facts["class_name"]
    return [f"a photo of {subject} {kind}", facts["unseen_context"]["prompt"], f"a photo of a {kind}"]


def settle(config: Config, origin: dict[str, str], family: Family, photos: PhotoSet) -> tuple[Config, dict[str, str]]:
    """Learning settings that were left open, from `family.defaults` and the photo count."""
    defaults, train, chosen = family.defaults, config.train, {}

    def default(key: str, value: object) -> None:
        section, name = key.split(".")
        if getattr(getattr(config, section), name) is None:
            chosen[key] = value

    default("data.resolution", family.resolution)
    named = bool(config.data.class_name or config.prior.class_prompt)
    default("prior.with_prior_preservation", train.method == "full" and named)
    prior = chosen.get("prior.with_prior_preservation", config.prior.with_prior_preservation)
    if prior:
        default("prior.num_class_images", defaults.class_images)
        default("prior.class_prompt", class_prompt(config))
    default("data.instance_prompt", instance_prompt(config.data))
    prodigy = train.optimizer == "prodigy"  # it finds the rate itself and expects the factor 1
    default("train.learning_rate", 1.0 if prodigy else defaults.learning_rate(train.method, prior, train.train_text_encoder))
    if train.train_text_encoder:
        given = "train.learning_rate" in origin or prodigy
        default("train.text_encoder_lr", train.learning_rate if given else defaults.text_learning_rate(train.method))
    if train.num_train_epochs is not None and train.max_train_steps is None:
        shown = sum(photo.repeats for photo in photos.photos)
        chosen["train.max_train_steps"] = train.num_train_epochs * math.ceil(shown / (train.train_batch_size * train.gradient_accumulation_steps))
    default("train.max_train_steps", defaults.max_train_steps(train.method))
    if not config.sample.validation_prompt and config.sample.num_validation_images:
        chosen["sample.validation_prompt"] = photos.prompts[:4]
    lora = train.method != "full"
    default("export.formats", ["lora_diffusers", "lora_kohya"] if lora else ["diffusers", "single_file"])
    subject = "-".join((config.data.identifier, *([config.data.class_name] if config.data.class_name else []))).replace(" ", "-")
    default("run.output_dir", str(_unused(Path("runs") / f"{time.strftime('%Y-%m-%d')}-{subject}")))
    default("run.cache_dir", str(Path(chosen.get("run.output_dir", config.run.output_dir)).parent / "cache"))
    return _with(config, origin, chosen, f"{family.name} default")


def _unused(path: Path) -> Path:
    """`path`, or with the first free number behind it: a default name never lands in an older run."""
    candidate, number = path, 2
    while candidate.exists() and any(candidate.iterdir()):
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate


def _with(config: Config, origin: dict[str, str], chosen: dict[str, object], who: str) -> tuple[Config, dict[str, str]]:
    settings = config.model_dump()
    for key, value in chosen.items():
        section, name = key.split(".")
        settings[section][name] = value
    return Config(**settings), origin | {key: who for key in chosen}
