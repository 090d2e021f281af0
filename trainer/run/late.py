"""Losses that are read one step late.

They leave the card behind their step, so that the host never waits for a step that has just been queued; a step's seconds
are the card's, from its own clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from trainer.data.batches import MicroBatch
from trainer.errors import Diverged
from trainer.events import Step
from trainer.machine.vitals import Vitals


@dataclass(frozen=True)
class Pending:
    """A step whose losses (micro-batches, 3) and norm are still on their way from the card; both are there at `ended`."""

    step: int
    lr: float
    started: float | torch.cuda.Event
    ended: float | torch.cuda.Event
    micro: list[MicroBatch]
    losses: torch.Tensor
    norm: torch.Tensor


class Late:
    """Steps that are queued, oldest first, until their losses are read."""

    def __init__(self, total: int, device: torch.device):
        self.total, self.vitals = total, Vitals(device)
        self.pending: list[Pending] = []

    def add(self, step: Pending) -> None:
        self.pending.append(step)

    def settle(self, but: int = 0) -> Iterator[Step]:
        """All but the last `but` as events; waits for their losses."""
        while len(self.pending) > but:
            yield self._read(self.pending.pop(0))

    def _read(self, pending: Pending) -> Step:
        seconds, losses = self.vitals.seconds(pending.started, pending.ended), pending.losses
        total, instance, prior = losses[:, 0].sum().item(), losses[:, 1].nanmean().item(), losses[:, 2].nanmean().item()
        if not math.isfinite(total):
            raise Diverged(_explain(pending, total))
        images, norm = sum(len(batch.target) for batch in pending.micro), float(pending.norm)
        facts = (pending.step, self.total, total, instance, prior, pending.lr, norm, seconds, images)
        return Step(*facts, **self.vitals.read())


def _explain(pending: Pending, total: float) -> str:
    pictures = ", ".join(dict.fromkeys(name for batch in pending.micro for name in batch.names))
    timesteps = ", ".join(str(int(t)) for batch in pending.micro for t in batch.values["timestep"])
    return (
        f"The loss became {total} in step {pending.step} (pictures: {pictures}; timesteps: {timesteps}; learning rate {pending.lr:g}).\n"
        "  likely cause: a learning rate that is too high, or fp16 overflow; earlier checkpoints are intact.\n"
        "  fix: lower --learning_rate, or use --mixed_precision bf16 (or no), then --resume_from_checkpoint latest."
    )
