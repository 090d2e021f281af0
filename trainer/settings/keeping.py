"""What cannot be combined among the ways to keep what the model knew: anchor, other prompts, words that learn alone."""

from __future__ import annotations

from pathlib import Path

from trainer.errors import ConfigError
from trainer.settings.config import Config


def check(config: Config) -> None:
    """Raise a ConfigError for the first thing that is wrong."""
    _anchor(config)
    _others(config)


def others(class_images: int, share: float) -> int:
    """How many pictures of other prompts make up `share` of the deck beside so many class images."""
    return round(class_images * share / (1 - share))


def _others(config: Config) -> None:
    prior = config.prior
    if prior.others_prompts and not Path(prior.others_prompts).is_file():
        raise ConfigError(f"there is no file {prior.others_prompts}", "name a text file with a prompt on each line")


def _anchor(config: Config) -> None:
    if not config.prior.anchor:
        return
    if config.train.optimizer != "adamw":
        raise ConfigError(
            f"prior.anchor needs the optimizer that reads the base model's weights, and {config.train.optimizer} does not",
            "use --optimizer adamw, or leave --anchor out",
        )
    if config.train.method == "dora":
        raise ConfigError(
            "prior.anchor means nothing for DoRA: its magnitudes multiply the weights, and decay would shrink them to nothing",
            "train with --method lora or full, or leave --anchor out",
        )
