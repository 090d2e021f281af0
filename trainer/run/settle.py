"""Blanks filled in: what the person left open is decided by the built-in demo, the model's family and the photos.

Each decision is written with `Config.settle`, so the printed settings say who made it. Memory settings stay open: they
are the planner's.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.data import folders
from trainer.data.photos import PhotoSet, class_prompt, instance_prompt
from trainer.models.base import Family
from trainer.settings import checks, overlay
from trainer.settings.config import Config, knobs

DEMO_GUIDANCE = 3.5  # what the built-in model draws best with; 7.5 burns its colours
DEMO_LOOK = {"sample.guidance_scale": DEMO_GUIDANCE, "prior.guidance_scale": DEMO_GUIDANCE, "prior.sample_steps": 25}
# How the built-in subjects are learned best, by the search over four of them (README: Can it keep everything else, too?)
DEMO_WAY = {
    "prior.by": "prediction",
    "prior.others": 0.5,
    "prior.contrast": 0.5,
    "prior.anchor": 0.01,
    "train.train_text_encoder": True,
    "train.text_part": "identifier",
    "train.text_encoder_lr": 3e-3,
}
DEMO_STEPS = 600
WORD_LR = 5e-4  # diffusers' examples/textual_inversion README
SUBJECTS = Path(__file__).parent.parent / "assets" / "demo" / "subjects"


def subject(config: Config) -> None:
    """The built-in subject, where no photos are named: its folder, its words, and prompts that show whether it was learned."""
    if config.data.instance_data_dir is not None:
        return
    name, facts = next(iter(json.loads((SUBJECTS / "subjects.json").read_text(encoding="utf-8")).items()))
    config.settle("data.instance_data_dir", str(SUBJECTS / name), "built-in photos")
    for knob in ("class_name", "identifier"):
        if not config.chosen(f"data.{knob}"):
            config.settle(f"data.{knob}", facts[knob], "built-in photos")
    if config.model.name == "demo" and config.train.method == "full":
        _demo_way(config)
    if not config.sample.validation_prompt:
        mine = instance_prompt(config.data)
        prompts = [mine, f"{mine} {facts['unseen_context']}", class_prompt(config), "a photo of a car"]
        config.settle("sample.validation_prompt", prompts, "built-in photos")


def _demo_way(config: Config) -> None:
    """The whole of it, or where somebody chose a part of it what everybody's trainer does: the demo's text encoder learned to
    pass over rare words, so a new name has to be learned there, too."""
    theirs = any(config.chosen(key) for key in knobs() if key.startswith("prior.") or key in DEMO_WAY)
    if not theirs:
        for key, value in DEMO_WAY.items():
            config.settle(key, value, "built-in demo")
        if not config.chosen("train.max_train_steps") and not config.chosen("train.num_train_epochs"):
            config.settle("train.max_train_steps", DEMO_STEPS, "built-in demo")
    elif not config.chosen("train.train_text_encoder"):
        config.settle("train.train_text_encoder", True, "built-in demo")


def words(config: Config) -> None:
    """The prompts that follow from the identifier, the class and a folder's name; a run's own settings leave them open."""
    folders.name_class(config)
    prior = config.prior
    if prior.with_prior_preservation and prior.class_prompt is None and config.data.class_name:
        config.settle("prior.class_prompt", class_prompt(config), "class_name")
    if config.data.instance_prompt is None:
        config.settle("data.instance_prompt", instance_prompt(config.data), "identifier and class_name")


def learning(config: Config, family: Family) -> None:
    """Settings that the family decides: prior preservation, prompts, rates, exports."""
    defaults, train = family.defaults, config.train

    def default(key: str, value: object, origin: str = f"{family.name} default") -> None:
        if config.value(key) is None:
            config.settle(key, value, origin)

    default("data.resolution", family.resolution)
    for key, value in DEMO_LOOK.items():
        if config.model.name == "demo" and not config.chosen(key):
            config.settle(key, value, "demo default")
    for key in ("sample.guidance_scale", "prior.guidance_scale"):
        if defaults.guidance is not None and not config.chosen(key):
            config.settle(key, defaults.guidance, f"{family.name} default")
    named = bool(config.data.class_name or config.prior.class_prompt)
    default("prior.with_prior_preservation", train.method == "full" and named and config.prior.by != "dco")
    prior = config.prior.with_prior_preservation
    if prior:
        default("prior.num_class_images", defaults.class_images)
        class_prompt(config)  # who names no class is asked for one here
    words(config)
    rate_given, finds_itself = config.chosen("train.learning_rate"), train.optimizer == "prodigy"
    if finds_itself:
        default("train.learning_rate", 1.0, "prodigy finds the rate; this is its factor")
    default("train.learning_rate", defaults.learning_rate(train.method, prior, train.train_text_encoder))
    if train.train_text_encoder and train.text_part == "identifier":
        default("train.text_encoder_lr", WORD_LR, "the rate of diffusers' textual inversion")
    if train.train_text_encoder and (rate_given or finds_itself):
        default("train.text_encoder_lr", train.learning_rate, "learning_rate")
    elif train.train_text_encoder:
        default("train.text_encoder_lr", defaults.text_learning_rate(train.method))
    lora = train.method != "full"
    if lora:
        default("lora.targets", [*defaults.targets])
    default(
        "export.formats",
        ["lora_diffusers", "lora_kohya"] if lora else ["diffusers", "single_file"],
        f"{train.method} training",
    )


def schedule(config: Config, family: Family, photos: PhotoSet) -> None:
    """Settings that the photos decide: how many steps, which prompts are drawn."""
    train = config.train
    if train.max_train_steps is None and train.num_train_epochs is not None:
        shown = sum(photo.repeats for photo in photos.photos)
        steps = train.num_train_epochs * math.ceil(shown / (train.train_batch_size * train.gradient_accumulation_steps))
        config.settle("train.max_train_steps", steps, f"{train.num_train_epochs} epochs of {shown} photos")
    elif train.max_train_steps is None:
        config.settle("train.max_train_steps", family.defaults.max_train_steps(train.method), f"{family.name} default")
    if train.lr_warmup_share:
        steps = round(train.lr_warmup_share * train.max_train_steps)
        config.settle("train.lr_warmup_steps", steps, f"{train.lr_warmup_share:g} of {train.max_train_steps} steps")
        config.settle("train.lr_warmup_share", 0.0, "counted in lr_warmup_steps")
    checks.of_steps(config)
    if not config.sample.validation_prompt and config.sample.num_validation_images:
        config.settle("sample.validation_prompt", photos.prompts[:4], "the photos' prompts")


def as_begun(config: Config, state: Mapping[str, Any]) -> None:
    """A resumed run keeps what it was begun with, where nobody names something else: the precisions, for another card, or
    less of it free, changes where bytes lie and not what is learned; and its class images."""
    policy = state.get("policy", {})
    for name in ("weights", "moments"):
        if getattr(config.memory, name) == "auto" and config.train.optimizer == policy.get("optimizer") == "adamw":
            config.settle(f"memory.{name}", policy[name], overlay.CHECKPOINT)
    prior = config.prior
    if not prior.with_prior_preservation or prior.class_data_dir or prior.class_seed is not None:
        return  # a folder that somebody named knows its own seed
    # class images had the run's seed before there was one of their own
    seed = state.get("made_of", {}).get("settings", {}).get("prior.class_seed", config.train.seed)
    if seed is not None:
        config.settle("prior.class_seed", seed, "the run that goes on")


def places(config: Config) -> None:
    """Folders that were left open."""
    if config.run.output_dir is None:
        words = "-".join(word for word in (config.data.identifier, config.data.class_name) if word).replace(" ", "-")
        config.settle(
            "run.output_dir", str(unused(Path("runs") / f"{time.strftime('%Y-%m-%d')}-{words}")), "today's date"
        )
    if config.run.cache_dir is None:
        config.settle("run.cache_dir", str(Path(config.run.output_dir).parent / "cache"), "beside output_dir")


def unused(path: Path) -> Path:
    """`path`, or with the first free number behind it: a default name never lands in an older run."""
    candidate, number = path, 2
    while candidate.exists() and any(candidate.iterdir()):
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate
