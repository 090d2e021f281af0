"""What a run tells about itself inside the files it exports: settings, and how many photos carry which caption."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from trainer.data import photos as data
from trainer.data.photos import PhotoSet
from trainer.errors import ConfigError
from trainer.settings.config import Config

KEYS = (
    "model.name",
    "model.clip_skip",
    "model.max_token_length",
    "data.instance_prompt",
    "data.identifier",
    "data.class_name",
    "data.resolution",
    "prior.with_prior_preservation",
    "prior.class_prompt",
    "prior.prior_loss_weight",
    "train.method",
    "train.max_train_steps",
    "train.learning_rate",
    "train.train_text_encoder",
    "train.text_encoder_lr",
    "train.train_batch_size",
    "train.gradient_accumulation_steps",
    "train.lr_scheduler",
    "train.optimizer",
    "train.mixed_precision",
    "train.snr_gamma",
    "train.offset_noise",
    "train.zero_terminal_snr",
    "train.seed",
    "export.strength",
)


def metadata(config: Config, photos: PhotoSet | None) -> dict[str, str]:
    """Training settings that travel inside exported files, with the run's name as their title. No folders: files are passed on."""
    found = {key: str(config.value(key)) for key in KEYS}
    if config.export.output_name:
        found["title"] = config.export.output_name
    elif config.run.output_dir:
        found["title"] = Path(config.run.output_dir).resolve().name
    if photos is not None:
        found["folder"] = Path(photos.folder).resolve().name
        found["captions"] = json.dumps(Counter(photo.prompt for photo in photos.photos), ensure_ascii=False)
    return found


def photos_of(config: Config) -> PhotoSet | None:
    """The photos that a finished run was made from, where they still are."""
    if config.data.instance_data_dir is None:
        return None
    try:
        return data.scan(config)
    except ConfigError:
        return None  # moved or gone: the export does without their captions
