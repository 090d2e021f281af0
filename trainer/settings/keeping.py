"""What cannot be combined among the ways to keep what the model knew: anchor, other prompts, words that learn alone."""

from __future__ import annotations

from trainer.errors import ConfigError
from trainer.settings.config import Config


def check(config: Config) -> None:
    """Raise a ConfigError for the first thing that is wrong."""
    _anchor(config)


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
