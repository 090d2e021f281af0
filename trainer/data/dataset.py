"""What training reads: every view of every photo as the VAE's distribution, and prompts as embeddings or token
ids, in RAM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer.models.base import Family
from trainer.models.rows import stacked
from trainer.models.vae import Latents


@dataclass(frozen=True)
class Example:
    """One view. mean, std: (C, H/f, W/f) fp32, unscaled; mask: (1, H/f, W/f) of mean one; sizes: (height, width)."""

    name: str
    mean: Tensor
    std: Tensor
    prompt: str
    mask: Tensor | None
    original_size: tuple[int, int]
    crop_top_left: tuple[int, int]
    target_size: tuple[int, int]


@dataclass(frozen=True)
class Dataset:
    """instances: the views of each photo; classes: one example of each class image; repeats: of each photo in an epoch;
    class_repeats: of each class image, one where it is empty.

    texts:  prompt -> {"text": (L, C), ...}; empty where the text encoder is trained
    tokens: prompt -> {"input_ids": (L,), ...}
    square:  (height, width) of a plain picture; latents: of which kind the examples' are
    """

    instances: list[list[Example]]
    classes: list[Example]
    repeats: list[int]
    texts: dict[str, dict[str, Tensor]]
    tokens: dict[str, dict[str, Tensor]]
    family: Family
    square: tuple[int, int]
    latents: Latents = field(default_factory=Latents)
    class_repeats: list[int] = field(default_factory=list)

    @property
    def class_count(self) -> int:
        return len(self.classes)

    @property
    def class_deck(self) -> list[int]:
        """Indices of class images, each as often as it repeats."""
        repeats = self.class_repeats or [1] * self.class_count
        return [index for index, times in enumerate(repeats) for _ in range(times)]

    @property
    def groups(self) -> dict[tuple[int, int], list[int]]:
        """Latent (height, width) -> indices of photos of this shape, each as often as it repeats."""
        found: dict[tuple[int, int], list[int]] = {}
        for index, views in enumerate(self.instances):
            found.setdefault(tuple(views[0].mean.shape[1:]), []).extend([index] * self.repeats[index])
        return found

    def variants(self, index: int) -> int:
        return len(self.instances[index])

    def instance(self, index: int, variant: int) -> Example:
        return self.instances[index][variant]

    def cls(self, index: int) -> Example:
        return self.classes[index]

    def conditions(self, prompts: Sequence[str], examples: Sequence[Example | None]) -> dict[str, Tensor]:
        """What the engine reads besides `sample` and `timestep`: embeddings or token ids, SDXL's sizes (B first).

        An example that is None stands for a plain square picture of the run's resolution.
        """
        texts = self.texts or self.tokens
        values = stacked([texts[prompt] for prompt in prompts])
        sizes = [
            (e.original_size, e.crop_top_left, e.target_size) if e else (self.square, (0, 0), self.square)
            for e in examples
        ]
        extra = [self.family.extra_values(*size, 1) for size in sizes]
        return values | {name: torch.cat([each[name] for each in extra]) for name in extra[0]}
