"""Which settings would do nothing, and why: a setting that is silently ignored is worse than one that is refused.

`idle` judges a configuration whatever its origin; `check` in `checks.py` refuses what a person set in vain, and `write`
in `overlay.py` puts such settings into config.toml as comments. One rule is one line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from trainer.settings.config import Config, knobs

# of [prior]: what needs no pictures of a class
ALONE = ("prior.with_prior_preservation", "prior.anchor", "prior.by", "prior.temperature")


class Idle(NamedTuple):
    why: str
    fix: str


def idle(config: Config) -> dict[str, Idle]:
    """Every setting that has no effect in this configuration: {dotted key: (why, fix)}."""
    found: dict[str, Idle] = {}
    for when, keys, why, fix in _rules(config):
        if when:
            for key in _expand(keys):
                found.setdefault(key, Idle(why, f"add {fix}, or leave it out" if fix else "leave it out"))
    return found


def prior_is_on(config: Config) -> bool:
    """Whether class images will be trained on. Left open, it follows from the method and from a class being named."""
    if config.prior.with_prior_preservation is not None:
        return config.prior.with_prior_preservation
    if config.prior.by == "dco":
        return False
    demo = config.data.instance_data_dir is None  # the built-in subject names its class
    return config.train.method == "full" and bool(demo or config.data.class_name or config.prior.class_prompt)


def rows(config: Config) -> int:
    """Of a micro-batch: its photos and as many class images."""
    return config.train.train_batch_size * (1 + prior_is_on(config))


def _rules(config: Config) -> Iterator[tuple[bool, str, str, str]]:
    """(nothing happens when, settings, why, what to add for it to count). A trailing dot means the whole section."""
    data, train, memory, sample = config.data, config.train, config.memory, config.sample
    yield train.method == "full", "lora.", "the method is full fine-tuning", "--method lora"
    yield not prior_is_on(config), "prior.", "prior preservation is off", "--with_prior_preservation and --class_name"
    fix = "--with_prior_preservation and --class_name"
    yield not prior_is_on(config) and config.prior.by != "dco", "prior.by", "prior preservation is off", fix
    yield not config.prior.others, "prior.others_prompts", "no pictures of other prompts are trained on", "--others 0.5"
    yield config.prior.by != "prediction", "prior.contrast", "the prior is not by prediction", "--by prediction"
    yield config.prior.by != "dco", "prior.temperature", "the loss is the plain one", "--by dco"
    yield data.crop != "random", "data.crop_variants", "crops are not random", "--crop random"
    yield data.buckets, "data.crop", "buckets cut no squares", ""

    yield config.lora.conv_rank is None, "lora.conv_alpha", "convolutions have the rank of the rest", "--conv_rank"
    yield not train.train_text_encoder, "lora.text_targets", "the text encoder is not trained", "--train_text_encoder"

    text = "train.text_part train.text_encoder_lr train.text_encoder_2_lr train.text_encoder_stop_step"
    yield not train.train_text_encoder, text, "the text encoder is not trained", "--train_text_encoder"
    yield train.train_text_encoder, "memory.cache_text", "a text encoder in training cannot be cached", ""
    late = (train.text_encoder_stop_step or 0) >= (train.max_train_steps or math.inf)
    yield late, "train.text_encoder_stop_step", "training ends before", f"less than {train.max_train_steps}"

    schedule, why = train.lr_scheduler, f"the schedule is {train.lr_scheduler}"
    yield schedule != "cosine_with_restarts", "train.lr_num_cycles", why, "--lr_scheduler cosine_with_restarts"
    yield schedule != "polynomial", "train.lr_power", why, "--lr_scheduler polynomial"
    warm = "train.lr_warmup_steps train.lr_warmup_share"
    yield schedule == "constant", warm, why, "--lr_scheduler constant_with_warmup"

    back = "prior.anchor pulls weights back to the base model's instead of towards 0"
    yield config.prior.anchor > 0, "train.adam_weight_decay", back, ""

    adam = "train.adam_beta1 train.adam_beta2 train.adam_epsilon"
    yield train.optimizer != "adamw", "memory.moments", f"{train.optimizer} keeps its own moments", "--optimizer adamw"
    yield train.optimizer == "adafactor", adam, "Adafactor has no such setting", "--optimizer adamw"
    yield train.optimizer == "prodigy", "train.adam_epsilon", "Prodigy runs with its own epsilon", ""
    yield train.max_grad_norm == 0, "train.clipping", "gradients are not clipped", "--max_grad_norm"
    single = train.train_batch_size * train.gradient_accumulation_steps == 1
    yield single, "train.scale_lr", "a step is one photo", "--train_batch_size above 1"
    yield not train.ema, "train.ema_decay", "no average is kept", "--ema"

    streaming = "memory.resident_units memory.early_updates memory.reach_mb"
    yield memory.stream == "off", streaming, "nothing is streamed", "--stream state (or all)"
    yield memory.early_updates is False, "memory.reach_mb", "updates wait for the norm", "--early_updates"
    once = config.checkpoint.checkpointing_steps is None and not config.guard.keep_best
    yield once, "checkpoint.checkpoints_total_limit", "only the end is saved", "--checkpointing_steps"
    drawn = " ".join(key for key in knobs() if key.startswith("sample.") and key != "sample.num_validation_images")
    yield sample.num_validation_images == 0, drawn, "no pictures are drawn", "--num_validation_images above 0"
    mine = "single_file" if train.method == "full" else "lora_kohya"
    unnamed = config.export.formats is not None and mine not in config.export.formats
    yield unnamed, "export.output_name", "the file that gets the name is not exported", f"{mine} to --formats"
    yield not config.run.report_to, "run.logging_dir", "no tracker writes", "--report_to tensorboard"


def _expand(keys: str) -> list[str]:
    if not keys.endswith("."):
        return keys.split()
    return [key for key in knobs() if key.startswith(keys) and key not in ALONE]
