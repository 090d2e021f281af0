"""What of a model learns: all of it, adapters, and of the text encoders all, the identifier's word or nothing."""

from __future__ import annotations

from trainer.models import adapters, word
from trainer.models.base import Parts
from trainer.settings.config import Config


def prepare(parts: Parts, config: Config) -> None:
    """Freeze the rest and put in what is new. Call before `Family.units`, which must see it."""
    train = config.train
    alone = train.train_text_encoder and train.text_part == "identifier"
    if train.method == "full":
        for module in parts.modules().values():
            module.requires_grad_(True)
    else:
        text = train.train_text_encoder and not alone
        adapters.inject(parts, config.lora, dora=train.method == "dora", text=text, seed=train.seed)
    if alone:
        word.inject(parts, config.data.identifier)
