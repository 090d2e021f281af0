"""Which photo, crop, noise and timestep each step sees: one CPU generator, so a run is the same on every card and resumes exactly.

A step is a list of micro-batches. Photos and class images share a micro-batch where their latents have one shape
(then the model runs once for both), and follow one another where a bucket makes them differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.objective.loss import Objective


@dataclass(frozen=True)
class MicroBatch:
    """`values` are the engine's inputs (B first); the rest belongs to the loss. The first `instances` rows are photos."""

    values: dict[str, Tensor]
    target: Tensor  # (B, C, H/8, W/8)
    weights: Tensor  # (B,)
    mask: Tensor | None  # (B, 1, H/8, W/8)
    instances: int
    names: tuple[str, ...]  # pictures in it, for messages

    def to(self, device: torch.device) -> MicroBatch:
        """Copied to `device`; from pinned memory and without waiting where that is a card."""

        def move(tensor: Tensor | None) -> Tensor | None:
            if tensor is None or device.type != "cuda":
                return tensor
            return tensor.pin_memory().to(device, non_blocking=True)

        values = {name: move(tensor) for name, tensor in self.values.items()}
        return MicroBatch(values, move(self.target), move(self.weights), move(self.mask), self.instances, self.names)


class Deck:
    """Indices 0..n-1 in a shuffled order that is renewed when it runs out, like an epoch."""

    def __init__(self, size: int, generator: torch.Generator):
        self.size, self.generator, self.order = size, generator, []

    def draw(self) -> int:
        if not self.order:
            self.order = torch.randperm(self.size, generator=self.generator).tolist()
        return self.order.pop()


class Batches:
    """Draws the micro-batches of a step from a cached dataset.

    dataset:    cache.Dataset
    objective:  noises latents and weighs timesteps
    scaling:    the VAE's scaling factor
    predictions: prior by prediction: rows that bring their own noised latents and targets, instead of class images
    """

    def __init__(
        self,
        dataset,
        objective: Objective,
        *,
        scaling: float,
        batch_size: int,
        accumulation: int,
        seed: int,
        caption_dropout: float = 0.0,
        predictions=None,
    ):
        self.dataset, self.objective, self.scaling = dataset, objective, scaling
        self.batch_size, self.accumulation, self.caption_dropout = batch_size, accumulation, caption_dropout
        self.predictions = predictions
        self.generator = torch.Generator().manual_seed(seed)
        self.groups = dataset.groups
        self.decks = {shape: Deck(len(group), self.generator) for shape, group in self.groups.items()}
        self.class_deck = Deck(dataset.class_count, self.generator) if dataset.class_count else None
        self.has_prior = self.class_deck is not None or predictions is not None

    def step(self) -> list[MicroBatch]:
        """The micro-batches of one optimizer step."""
        return [micro for _ in range(self.accumulation) for micro in self._micro()]

    def _micro(self) -> list[MicroBatch]:
        photos = self._rows([self._photo_example(shape) for shape in [self._shape()] * self.batch_size], instance=True)
        if not self.has_prior:
            return [photos]
        prior = self._predicted() if self.predictions is not None else self._class_rows()
        if photos.target.shape[1:] == prior.target.shape[1:]:
            return [_concat(photos, prior)]
        return [photos, prior]

    def _shape(self) -> tuple[int, int]:
        """A bucket, with the probability of its share of the photos."""
        shapes = list(self.decks)
        if len(shapes) == 1:
            return shapes[0]
        sizes = torch.tensor([float(self.decks[shape].size) for shape in shapes])
        return shapes[int(torch.multinomial(sizes, 1, generator=self.generator))]

    def _photo_example(self, shape):
        index = self.groups[shape][self.decks[shape].draw()]
        variant = int(torch.randint(self.dataset.variants(index), (1,), generator=self.generator))
        return self.dataset.instance(index, variant)

    def _class_rows(self) -> MicroBatch:
        return self._rows([self.dataset.cls(self.class_deck.draw()) for _ in range(self.batch_size)], instance=False)

    def _predicted(self) -> MicroBatch:
        draws = [self.predictions.draw(self.generator) for _ in range(self.batch_size)]
        timesteps = torch.stack([draw.timestep for draw in draws])
        values = {"sample": torch.stack([draw.sample for draw in draws]).float(), "timestep": timesteps}
        values |= self.dataset.conditions([self.predictions.prompt] * len(draws), [None] * len(draws))
        target = torch.stack([draw.target for draw in draws]).float()
        return MicroBatch(values, target, self.objective.weights(timesteps), None, 0, ("predicted prior",) * len(draws))

    def _rows(self, examples: list, *, instance: bool) -> MicroBatch:
        mean = torch.stack([example.mean for example in examples]).float()  # (B, C, H/8, W/8)
        std = torch.stack([example.std for example in examples]).float()
        latents = (mean + std * torch.randn(mean.shape, generator=self.generator)) * self.scaling
        noised = self.objective.draw(latents, self.generator)
        prompts = [example.prompt for example in examples]
        if instance and self.caption_dropout:
            dropped = torch.rand(len(prompts), generator=self.generator) < self.caption_dropout
            prompts = ["" if drop else prompt for prompt, drop in zip(prompts, dropped, strict=True)]
        values = {"sample": noised.sample, "timestep": noised.timesteps} | self.dataset.conditions(prompts, examples)
        masks = [example.mask for example in examples]
        mask = None
        if instance and any(m is not None for m in masks):
            mask = torch.stack([torch.ones(1, *mean.shape[2:]) if m is None else m.float() for m in masks])
        names = tuple(example.name for example in examples)
        return MicroBatch(values, noised.target, noised.weights, mask, len(examples) if instance else 0, names)

    def state(self) -> dict[str, object]:
        """Everything that decides the coming steps: JSON-ready but for `generator`, a uint8 tensor."""
        decks = {f"{h}x{w}": list(deck.order) for (h, w), deck in self.decks.items()}
        classes = list(self.class_deck.order) if self.class_deck else []
        return {"generator": self.generator.get_state(), "decks": decks, "class_deck": classes}

    def restore(self, state: Mapping) -> None:
        self.generator.set_state(state["generator"])
        for (height, width), deck in self.decks.items():
            deck.order = list(state["decks"][f"{height}x{width}"])
        if self.class_deck:
            self.class_deck.order = list(state["class_deck"])


def _concat(photos: MicroBatch, prior: MicroBatch) -> MicroBatch:
    values = {name: torch.cat([photos.values[name], prior.values[name]]) for name in photos.values}
    mask = photos.mask
    if mask is not None:
        mask = torch.cat([mask, torch.ones(len(prior.target), *mask.shape[1:])])
    return MicroBatch(
        values,
        torch.cat([photos.target, prior.target]),
        torch.cat([photos.weights, prior.weights]),
        mask,
        photos.instances,
        photos.names + prior.names,
    )
