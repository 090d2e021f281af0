"""Clip skip: SD 1.x conditioned on the text encoder's penultimate state, as models that were trained so expect it.

The state before the last layer, put through the final norm, is what an encoder without its last layer says. So training with
`clip_skip = 2` takes that layer off the model, and everything else (units, caches, previews, adapters) needs to know nothing.
The layer waits in `Parts.spare`, and `whole` puts it back for as long as a complete model is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from trainer.errors import ConfigError
from trainer.models.base import Family, Parts


def shortened(parts: Parts, skip: int) -> Parts:
    """The same parts without the last `skip - 1` layers of the text encoder. The digest says so, as class images that
    were drawn with one layer more are others."""
    if skip == 1 or not parts.text_encoders:
        return parts
    check(parts.family, skip)
    layers, whole_count = parts.text_encoders[0].encoder.layers, parts.text_encoders[0].config.num_hidden_layers
    keep = whole_count + 1 - skip
    if keep < 1:
        raise ConfigError(f"clip_skip = {skip} leaves nothing of {whole_count} layers", "use --clip_skip 2")
    spare = list(layers[keep:])
    del layers[keep:]
    return replace(parts, spare=spare, digest=f"{parts.digest}-skip{skip}")


def check(family: Family, skip: int) -> None:
    """ConfigError where the family's text encoder has no layer to be skipped."""
    if skip > 1 and not family.trains_text:
        raise ConfigError(f"clip_skip: {family.title} reads fixed layers of its text encoders", "leave --clip_skip out")
    if skip > 1 and family.name == "sd2":
        raise ConfigError("clip_skip: SD 2.x has its text encoder's penultimate state already", "leave --clip_skip out")
    if skip > 1 and family.name == "sdxl":
        raise ConfigError("clip_skip: SDXL reads its text encoders' penultimate state always", "leave --clip_skip out")


@contextmanager
def whole(parts: Parts) -> Iterator[None]:
    """The text encoder with all its layers, for as long as the context is held."""
    short = parts.spare and len(parts.text_encoders[0].encoder.layers) < parts.text_encoders[0].config.num_hidden_layers
    layers = parts.text_encoders[0].encoder.layers if short else None
    if layers is not None:
        layers.extend(parts.spare)
    try:
        yield
    finally:
        if layers is not None:
            del layers[-len(parts.spare) :]
