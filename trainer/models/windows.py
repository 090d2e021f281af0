"""Long prompts: read in windows of 75 tokens, whose states stand one after the other (`sd.text` does it).

Every prompt of a run, the empty one too, then has as many windows as the longest may have, and so has what is cached, drawn
and trained: the denoiser attends to all of them.

Windows are joined whole, as ComfyUI and the WebUIs join them when they draw: 77 states of each, its own begin and end among
them. kohya's trainers keep one begin and one end of all windows (152 states for two, where these have 154), so a model of
theirs was trained on other conditions than it is drawn with.
"""

from __future__ import annotations

from dataclasses import replace

from trainer.errors import ConfigError
from trainer.models.base import Family, Parts

WINDOW = 75  # tokens between the begin and the end of a text


def check(family: Family, max_token_length: int) -> None:
    """ConfigError where the family reads prompts of any length as they are."""
    if max_token_length != WINDOW and not family.trains_text:
        raise ConfigError(
            f"max_token_length: {family.title} reads long prompts whole, without windows",
            "leave --max_token_length out",
        )


def widened(parts: Parts, max_token_length: int) -> Parts:
    """The same parts, reading prompts of up to `max_token_length` tokens. The digest says so, as class images that were
    drawn with more windows are others."""
    if max_token_length == WINDOW:
        return parts
    return replace(parts, windows=max_token_length // WINDOW, digest=f"{parts.digest}-tokens{max_token_length}")
