"""Which photo, crop, noise and timestep each step sees: one CPU generator, so a run is the same on every card and resumes exactly.

A step is a list of micro-batches. Photos and class images share a micro-batch where their latents have one shape
(then the model runs once for both), and follow one another where a bucket makes them differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from trainer.data.dataset import Dataset, Example
from trainer.errors import ConfigError
from trainer.models.rows import joined
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
    counts: tuple[int, int] | None = None  # photos and class images on all cards, where this is one card's share
    reference: Tensor | None = None  # (B,) what the base model's errors are on these rows, where that counts
    number: int = 0  # among the step's micro-batches, of which a card may have none

    def to(self, device: torch.device) -> MicroBatch:
        """Copied to `device`; from pinned memory and without waiting where that is a card."""

        def move(tensor: Tensor | None) -> Tensor | None:
            if tensor is None or device.type != "cuda":
                return tensor
            return tensor.pin_memory().to(device, non_blocking=True)

        values = {name: move(tensor) for name, tensor in self.values.items()}
        tensors = {name: move(getattr(self, name)) for name in ("target", "weights", "mask", "reference")}
        return replace(self, values=values, **tensors)


def share(micro: Sequence[MicroBatch], rank: int, size: int) -> list[MicroBatch]:
    """One rank's rows of a step that every rank drew: dealt out like cards, every `size`-th beginning with `rank`'s.

    A pair on two cards is thus the photo on one and its class image on the other. A share remembers how many photos and
    class images the whole micro-batch had, because each half of the loss is a mean over all of them, wherever they are.
    """
    if size == 1:
        return list(micro)
    found, before = [], 0
    for number, batch in enumerate(micro):
        rows = [row for row in range(len(batch.target)) if (before + row) % size == rank]
        before += len(batch.target)
        if rows:
            found.append(_part(batch, rows, number))
    assert found, "prepare refuses fewer rows than ranks"
    return found


def _part(batch: MicroBatch, rows: list[int], number: int) -> MicroBatch:
    chosen = torch.tensor(rows)
    return replace(
        batch,
        values={name: value[chosen] for name, value in batch.values.items()},
        target=batch.target[chosen],
        weights=batch.weights[chosen],
        mask=None if batch.mask is None else batch.mask[chosen],
        reference=None if batch.reference is None else batch.reference[chosen],
        instances=sum(row < batch.instances for row in rows),
        names=tuple(batch.names[row] for row in rows),
        counts=(batch.instances, len(batch.target) - batch.instances),
        number=number,
    )


class Deck:
    """Indices 0..n-1 in a shuffled order that is renewed when it runs out, like an epoch."""

    def __init__(self, size: int):
        self.size, self.order = size, []

    def draw(self, generator: torch.Generator) -> int:
        if not self.order:
            self.order = torch.randperm(self.size, generator=generator).tolist()
        return self.order.pop()


class Draws(Protocol):
    """Rows that are noised in a few known ways, so that something can be known of each beforehand."""

    def rows(self, examples: Sequence[Example], generator: torch.Generator) -> MicroBatch:
        """One of the known rows of each example, chosen by `generator` alone."""
        ...


class PriorRows(Protocol):
    """The class half of a micro-batch: what holds the model to what it knew of the class."""

    def take(self, count: int, generator: torch.Generator) -> MicroBatch:
        """`count` rows, drawn by `generator` alone."""

    def state(self) -> list[int]:
        """What decides the coming rows beside the generator, JSON-ready."""

    def restore(self, state: Sequence[int]) -> None:
        """The inverse of `state`."""


class ClassRows:
    """Class images from a deck of their own, noised as photos are."""

    def __init__(self, dataset: Dataset, objective: Objective, draws: Draws | None = None):
        self.dataset, self.objective, self.order = dataset, objective, dataset.class_deck
        self.deck, self.draws = Deck(len(self.order)), draws

    def take(self, count: int, generator: torch.Generator) -> MicroBatch:
        examples = [self.dataset.cls(self.order[self.deck.draw(generator)]) for _ in range(count)]
        if self.draws is not None:
            return self.draws.rows(examples, generator)
        return noised_rows(self.dataset, self.objective, examples, generator)

    def state(self) -> list[int]:
        return list(self.deck.order)

    def restore(self, state: Sequence[int]) -> None:
        self.deck.order = _fitting(state, self.deck, "class images")


class Batches:
    """Draws the micro-batches of a step from a cached dataset: photos, and beside them rows of `prior` where there is one."""

    def __init__(
        self,
        dataset: Dataset,
        objective: Objective,
        prior: PriorRows | None = None,
        *,
        batch_size: int,
        accumulation: int,
        seed: int,
        caption_dropout: float = 0.0,
    ):
        self.dataset, self.objective, self.prior = dataset, objective, prior
        self.batch_size, self.accumulation, self.caption_dropout = batch_size, accumulation, caption_dropout
        self.generator = torch.Generator().manual_seed(seed)
        self.groups = dataset.groups
        self.decks = {shape: Deck(len(group)) for shape, group in self.groups.items()}
        self.coming: list[tuple[int, int]] = []  # shapes of the epoch's batches that are left
        self.owed = dict.fromkeys(self.groups, 0)  # photos that made no whole batch of their shape, for the next epoch
        self.draws: Draws | None = None  # where photos are noised in a few known ways only

    def step(self) -> list[MicroBatch]:
        """The micro-batches of one optimizer step."""
        return [micro for _ in range(self.accumulation) for micro in self._micro()]

    def _micro(self) -> list[MicroBatch]:
        examples = [self._photo(shape) for shape in [self._shape()] * self.batch_size]
        if self.draws is not None:
            photos = self.draws.rows(examples, self.generator)
        else:
            photos = noised_rows(self.dataset, self.objective, examples, self.generator, self.caption_dropout)
        if self.prior is None:
            return [photos]
        prior = self.prior.take(self.batch_size, self.generator)
        if photos.target.shape[1:] == prior.target.shape[1:]:
            return [concat([photos, prior])]
        return [photos, prior]

    def _shape(self) -> tuple[int, int]:
        """A bucket. In an epoch each comes as often as its photos fill batches, so every photo is shown as often as it
        repeats; drawing buckets by their share would leave some photos out and show others twice."""
        if len(self.decks) == 1:
            return next(iter(self.decks))
        while not self.coming:
            epoch = []
            for shape, group in self.groups.items():
                full, self.owed[shape] = divmod(self.owed[shape] + len(group), self.batch_size)
                epoch += [shape] * full
            self.coming = [epoch[i] for i in torch.randperm(len(epoch), generator=self.generator).tolist()]
        return self.coming.pop()

    def _photo(self, shape: tuple[int, int]) -> Example:
        index = self.groups[shape][self.decks[shape].draw(self.generator)]
        variant = int(torch.randint(self.dataset.variants(index), (1,), generator=self.generator))
        return self.dataset.instance(index, variant)

    def state(self) -> dict[str, object]:
        """Everything that decides the coming steps: JSON-ready but for `generator`, a uint8 tensor."""
        decks = {f"{h}x{w}": list(deck.order) for (h, w), deck in self.decks.items()}
        classes = self.prior.state() if self.prior is not None else []
        buckets = {"coming": [list(shape) for shape in self.coming], "owed": list(self.owed.values())}
        return {"generator": self.generator.get_state(), "decks": decks, "class_deck": classes, "buckets": buckets}

    def restore(self, state: Mapping) -> None:
        self.generator.set_state(state["generator"])
        if state["decks"].keys() != {f"{height}x{width}" for height, width in self.decks}:
            raise _other("photos")
        for (height, width), deck in self.decks.items():
            deck.order = _fitting(state["decks"][f"{height}x{width}"], deck, "photos")
        if "buckets" in state:  # older checkpoints drew a bucket anew each time
            self.coming = [tuple(shape) for shape in state["buckets"]["coming"]]
            self.owed = dict(zip(self.groups, state["buckets"]["owed"], strict=True))
        if self.prior is not None:
            self.prior.restore(state["class_deck"])


def _fitting(order: Sequence[int], deck: Deck, what: str) -> list[int]:
    """A saved order of cards, which must be cards of this deck."""
    if any(type(card) is not int or not 0 <= card < deck.size for card in order):
        raise _other(what)
    return list(order)


def _other(what: str) -> ConfigError:
    return ConfigError(
        f"the checkpoint's order of {what} names some that are not there now, or of another shape",
        f"put {what}, --resolution and --buckets back as they were, or start anew in another --output_dir",
    )


def noised_rows(
    dataset: Dataset,
    objective: Objective,
    examples: Sequence[Example],
    generator: torch.Generator,
    caption_dropout: float | None = None,
) -> MicroBatch:
    """A micro-batch of `examples` of one shape, sampled from their distributions and noised.

    caption_dropout: how often a photo loses its prompt; None for rows of the class, whose masks do not count either
    """
    photos = caption_dropout is not None
    mean = torch.stack([example.mean for example in examples]).float()  # (B, C, H/8, W/8)
    std = torch.stack([example.std for example in examples]).float()
    latents = dataset.latents.scaled(mean + std * torch.randn(mean.shape, generator=generator))
    noised = objective.draw(latents, generator, photos)
    prompts = [example.prompt for example in examples]
    if caption_dropout:
        dropped = torch.rand(len(prompts), generator=generator) < caption_dropout
        prompts = ["" if drop else prompt for prompt, drop in zip(prompts, dropped, strict=True)]
    values = {"sample": noised.sample, "timestep": noised.timesteps} | dataset.conditions(prompts, examples)
    masks = [example.mask for example in examples]
    mask = None
    if photos and any(m is not None for m in masks):
        mask = torch.stack([torch.ones(1, *mean.shape[2:]) if m is None else m.float() for m in masks])
    names = tuple(example.name for example in examples)
    return MicroBatch(values, noised.target, noised.weights, mask, len(examples) if photos else 0, names)


def concat(batches: Sequence[MicroBatch]) -> MicroBatch:
    """Rows of one shape one after the other, photos before class images."""
    masks = [batch.mask for batch in batches]
    mask = None
    if any(each is not None for each in masks):
        sizes = [(len(batch.target), 1, *batch.target.shape[2:]) for batch in batches]
        mask = torch.cat([torch.ones(size) if m is None else m for m, size in zip(masks, sizes, strict=True)])
    references = [batch.reference for batch in batches if batch.reference is not None]
    return MicroBatch(
        joined([batch.values for batch in batches]),
        torch.cat([batch.target for batch in batches]),
        torch.cat([batch.weights for batch in batches]),
        mask,
        sum(batch.instances for batch in batches),
        tuple(name for batch in batches for name in batch.names),
        reference=torch.cat(references) if references else None,
    )
