"""Direct Consistency Optimization with cached losses: learn a picture only as far beyond the base model as it pays (arXiv
2402.12004).

    loss = 2 T softplus((L - L_base) / T)        L, L_base: the two models' errors on one (latent, noise, timestep)

The paper runs the base model beside the learner in every step. Here every picture is noised in a finite number of ways, each
made again from its seed, and what the base model's error is on each is one number, measured before training by the very
forward pass that training takes, and cached: no second model, and no further forward pass while training. It holds for
photos; where class images are asked for (--with_prior_preservation), for them too, and the two halves are weighed as ever.

T, prior.temperature, is the paper's 1 / beta: 0.001 there, "1000 to 2000 works fine". A smaller one keeps more of the
base model; a larger one learns more, and from about the size of the losses on is plain training again.

Saves: the base model's weights beside the learner's, and its forward pass in each step; class images, where there are none.
Costs: one forward pass for each cached draw before training, at most DRAWS for each half; fewer noises than there are steps
       and rows where a run is longer.
Exact: yes: a cached loss is the base model's on that very row, to the rounding of another batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from trainer.data.batches import MicroBatch, concat, noised_rows
from trainer.data.dataset import Dataset, Example
from trainer.events import Notice, Stage
from trainer.files.claim import Claim
from trainer.files.store import Store, checksum, key
from trainer.machine.phase import Phase
from trainer.objective.loss import Objective
from trainer.prior.turn import come
from trainer.settings.config import Config
from trainer.step.engine import Engine

DRAWS = 1000  # noised rows of each half, at most
LEAST = 8  # noises of each picture
STRIDE = 1 << 20  # seeds of one picture


@dataclass(frozen=True)
class Deck:
    """`count` noisings of each of `examples`, each with the base model's loss in `losses` (examples, count) once it is known.

    caption_dropout: as for `noised_rows`, None for class images
    """

    dataset: Dataset
    objective: Objective
    examples: Sequence[Example]
    count: int
    seed: int
    caption_dropout: float | None
    losses: Tensor | None = None

    def row(self, place: int, number: int) -> MicroBatch:
        """A noising: the same bits each time."""
        own = torch.Generator().manual_seed(self.seed + STRIDE * (place + 1) + number)
        example = self.examples[place]
        made = noised_rows(self.dataset, self.objective, [example], own, self.caption_dropout)
        return made if self.losses is None else replace(made, reference=self.losses[place, number][None])

    @cached_property
    def places(self) -> dict[int, int]:
        """The place of an example by its identity."""
        return {id(example): place for place, example in enumerate(self.examples)}

    def rows(self, examples: Sequence[Example], generator: torch.Generator) -> MicroBatch:
        numbers = torch.randint(self.count, (len(examples),), generator=generator).tolist()
        return concat([self.row(self.places[id(e)], n) for e, n in zip(examples, numbers, strict=True)])


def decks(dataset: Dataset, objective: Objective, config: Config) -> tuple[Deck, Deck | None]:
    """Of photos, and of class images where there are any; their losses are still to be measured."""
    train = config.train
    rows = (
        train.max_train_steps * train.train_batch_size * train.gradient_accumulation_steps
    )  # a short run has no use for more

    def deck(examples: list[Example], seed: int, dropout: float | None) -> Deck:
        count = max(LEAST, -(-min(DRAWS, rows) // len(examples)))
        return Deck(dataset, objective, examples, count, seed, dropout)

    views = [view for each in dataset.instances for view in each]
    photos = deck(views, train.seed, train.caption_dropout)
    classes = deck(dataset.classes, train.seed + (1 << 40), None) if dataset.classes else None
    return photos, classes


def known(deck: Deck, engine: Engine, model: str, folder: Path, rows: int = 1) -> Stage[Deck]:
    """`deck` with the losses of the base model, which `engine` still holds, measured now or found in `folder`.

    model: its digest; rows: in one forward, no more than a training micro-batch has
    """
    objective, policy = deck.objective, engine.policy
    shown = {str(place): example.mean for place, example in enumerate(deck.examples)}
    facts = {
        "model": model,
        "pictures": checksum(shown),
        "prompts": [example.prompt for example in deck.examples],
        "masked": [example.mask is not None for example in deck.examples],
        "count": deck.count,
        "seed": deck.seed,
        "dropout": deck.caption_dropout,
        "objective": [repr(objective.noise), objective.snr_gamma, objective.offset_noise],
        "computes": [str(policy.math), policy.weights, policy.channels_last, policy.attention],
        "device": engine.device.type,
    }
    store, name, team = Store(Path(folder) / "losses"), key(kind="losses 1", **facts), engine.team
    what = "photos" if deck.caption_dropout is not None else "class images"
    total = len(deck.examples) * deck.count
    phase = Phase("class images", engine.device)
    with Claim(Path(folder) / "losses", name) as claim:  # another run's, of rows in other batches, would replace these
        yield from come(claim, phase, f"measuring the base model's losses on the same {what}", team)
        if (found := team.told(lambda: store.get(name, ("losses",)))) is not None:
            yield Notice(f"The base model's losses on {total} draws of {what} are known.")
            return replace(deck, losses=found["losses"])
        yield phase.start(total, f"the base model's losses on {total} draws of {what}")
        losses = torch.empty(len(deck.examples), deck.count)
        for place in range(len(deck.examples)):
            for first in range(0, deck.count, rows):
                some = range(first, min(first + rows, deck.count))
                losses[place, first : some.stop] = _losses(
                    concat([deck.row(place, n) for n in some]), engine, objective
                )
            yield phase.progress((place + 1) * deck.count)
        if team.leads:
            store.put(name, {"losses": losses})
    yield phase.end(f"{total} losses")
    return replace(deck, losses=losses)


def _losses(rows: MicroBatch, engine: Engine, objective: Objective) -> Tensor:
    there = rows.to(engine.device)
    prediction = engine.forward(there.values)
    return objective.errors(prediction, there.target, there.weights, there.mask).cpu()
