"""The plan corrected by doing: one step that teaches nothing, one batch of pictures and one dummy save, on a card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from trainer.draw.painter import Painter
from trainer.events import Stage, outcome
from trainer.plan import measured
from trainer.run.loop import Job
from trainer.run.prepare import Run


def measure(run: Run, job: Job, painter: Painter) -> Stage[None]:
    """Correct the run's plan, and say what came out."""
    run.plan = measured.probe(run.plan, run.device, probes(run, job, painter))
    yield from run.plan.events()


def probes(run: Run, job: Job, painter: Painter) -> dict[str, Callable[[], object]]:
    """Phase -> what stands for it: the stages' own calls, shortened where they repeat themselves."""
    config = run.config
    state = job.batches.state()
    micro = [batch.to(run.device) for batch in job.batches.step()]
    job.batches.restore(state)

    def step() -> None:
        loss = job.objective.of_step(micro, job.batches.accumulation)
        for _ in range(1 + job.engine.policy.deferred):  # updates that wait are made by the step behind theirs
            job.engine.step([m.values for m in micro], loss, job.rates, update=False)

    def draw() -> None:
        rows, prompt = painter.drawing.batch, config.sample.validation_prompt[0]
        outcome(replace(painter, look=replace(painter.look, steps=2)).paint([prompt] * rows, list(range(rows))))

    def save() -> None:
        for tensor in job.engine.state_dict().values():
            tensor.cpu()

    def every_weight() -> None:
        for _ in job.engine.master():
            pass

    found = {"train": step, "save": save, "export": every_weight}
    if config.sample.num_validation_images and config.sample.validation_prompt:
        found["sample"] = draw
    return found
