"""The plan corrected by doing: a step that teaches nothing, a batch of pictures, a dummy save, a look at every weight; on a card."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from trainer.data.batches import share
from trainer.draw.painter import Painter
from trainer.events import Event, Stage, outcome
from trainer.plan.here import measured
from trainer.run.prepare import Run
from trainer.run.trained import Trained


def measure(run: Run, trained: Trained, painter: Painter) -> Stage[None]:
    """Correct the run's plan, and say what came out."""
    with torch.random.fork_rng():  # a step's dropout draws, and no step was taken
        run.plan = measured.probe(run.plan, run.device, probes(run, trained, painter))
    yield from run.plan.events()


def probes(run: Run, trained: Trained, painter: Painter) -> dict[str, Callable[[], object]]:
    """Phase -> what stands for it: the stages' own calls, shortened where they repeat themselves."""
    engine, batches, sample = trained.engine, trained.batches, run.config.sample
    state = batches.state()
    micro = [batch.to(run.device) for batch in share(batches.step(), run.team.rank, run.team.size)]
    batches.restore(state)

    def step() -> None:
        loss = trained.objective.of_step(micro, batches.accumulation)
        for _ in range(1 + engine.policy.deferred):  # updates that wait are made by the step behind theirs
            engine.step([batch.values for batch in micro], loss, trained.rates.base, update=False)

    def draw() -> None:
        rows, prompt = painter.drawing.batch, sample.validation_prompt[0]
        outcome(replace(painter, look=replace(painter.look, steps=2)).paint([prompt] * rows, list(range(rows))))

    def save() -> Iterator[Event]:
        for tensor in engine.state_dict().values():
            tensor.cpu()
        yield from ()

    def every_weight() -> Iterator[Event]:
        for _ in engine.master():
            pass
        yield from ()

    def alone(events: Callable[[], Iterator[Event]]) -> Callable[[], object]:
        return lambda: outcome(trained.first(events()))

    found = {"train": step, "save": alone(save), "export": alone(every_weight)}
    if sample.num_validation_images and sample.validation_prompt:
        found["sample"] = draw
    return found
