"""What learns, and with it everything that must be put back for a resumed run to go on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from trainer.data.batches import Batches
from trainer.events import Event, Stage
from trainer.files.asked import Asked
from trainer.guard.guard import Guard
from trainer.objective.loss import Objective
from trainer.out import checkpoint, export
from trainer.step import outside
from trainer.step.ema import Average
from trainer.step.engine import Engine
from trainer.step.rates import Rates


@dataclass
class Trained:
    """One object that resumes: `state` is all of it, `restore` puts all of it back.

    folder: of the run, where its checkpoints lie; total: steps to take; step: steps taken
    facts:  what a checkpoint says about itself beside that: its run, policy, way of drawing, the model's digest
    """

    folder: Path
    engine: Engine
    batches: Batches
    objective: Objective
    rates: Rates
    total: int
    facts: dict[str, object]
    average: Average | None = None
    guard: Guard | None = None
    step: int = 0
    resumed: Path | None = None  # the checkpoint this is equal to, until the next step
    searches: bool = False  # whether cuDNN looks for its fastest algorithms in a step

    def __post_init__(self) -> None:
        self.engine.exchange.offers["average"] = lambda k: self._average.values[self.engine.units[k].name]

    @property
    def _average(self) -> Average:
        assert self.average is not None, "asked for only where one is kept"
        return self.average

    def averaged(self) -> Asked:
        """The moving average by parameter."""
        return outside.by_parameter(self.engine.holdings, partial(self.engine.exchange.whole, "average"))

    def first(self, events: Iterator[Event]) -> Iterator[Event]:
        """Events of the first process alone, for which the others wait, or help where it wants what they have of the state.
        Every update is made before, because that takes all of them."""
        self.engine.flush()
        yield from self.engine.team.first(events, self.engine.exchange.help)

    def state(self) -> checkpoint.State:
        """The rest of the run follows from it. Its tensors are the live ones, not copies."""
        generators = {"torch": torch.get_rng_state()}  # what dropout draws from
        if self.engine.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.engine.device)
        average = None if self.average is None else self.averaged()
        facts = self.facts | {"ema_steps": self.average.steps if self.average else 0}
        return checkpoint.State(self.step, self.engine.state_dict(), average, self.batches.state(), generators, facts)

    def restore(self, point: Path) -> Stage[None]:
        """Back to where `point` was written, the guard's readings cut to its step. Events are those of a base model that
        the guard has to read first, because it never did."""
        state = checkpoint.load(point)
        if self.guard is not None:
            yield from self.guard.go_on(point.parent / self.guard.folder.name, state.step)
        self.engine.load_state_dict(state.engine)
        self.batches.restore(state.batches)
        if point.resolve().parent == self.folder.resolve():
            self.facts = self.facts | {"run": state.facts.get("run", "")}  # elsewhere it is a run of its own
        if self.average is not None and state.average is not None:
            slices = outside.slices_of(self.engine.units, self.engine.holdings, state.average)
            self.average.restore(slices, state.facts["ema_steps"])
        elif self.average is not None:  # begun only now: from the weights as they are, not from the base model
            self.average = Average(self.engine.slices(), self.average.decay)
        torch.set_rng_state(state.generators["torch"])
        if "cuda" in state.generators and self.engine.device.type == "cuda":
            torch.cuda.set_rng_state(state.generators["cuda"], self.engine.device)
        self.step, self.resumed = state.step, point

    @property
    def weights(self) -> export.Weights:
        """What is exported: the moving average, where one is kept."""
        return self.averaged() if self.average else self.engine.master

    @property
    def best(self) -> Path | None:
        """The checkpoint of the guard's best reading so far, if one was kept of it."""
        step = self.guard.rulings.best_step if self.guard is not None else None
        return None if step is None else checkpoint.at(self.folder, step)
