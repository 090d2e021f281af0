"""The training loop: a generator of events that reads the same on a 4 GB card and on a 24 GB one.

It draws a step's micro-batches, hands them to the engine, and yields what happened. Where bytes live is the engine's
business, what is on screen the reader's. Losses leave the card behind their step and are read one step late, so that
the host never waits for a step that has just been queued; a step's seconds are the card's, from its own clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from trainer.data.batches import Batches, MicroBatch
from trainer.events import CheckpointSaved, Controls, Event, Notice, Step
from trainer.guard.guard import Guard
from trainer.machine.vitals import Vitals
from trainer.objective.loss import Objective
from trainer.out import checkpoint
from trainer.step.ema import Average
from trainer.step.engine import Engine


class Diverged(RuntimeError):
    """The loss is no longer a number. The message names the step, the pictures and the likely cause."""


@dataclass
class Job:
    """One training run.

    rates:   learning rate by model name ("unet", "text"), before the schedule
    factor:  schedule.factor(...)
    preview: draws pictures of the weights as they are: preview(step) -> events
    guard:   takes readings: guard.due(step), guard.read(step) -> events, guard.stop -> str
    """

    run: Path
    engine: Engine
    batches: Batches
    objective: Objective
    rates: dict[str, float]
    factor: Callable[[int], float]
    total: int
    vitals: Vitals
    facts: dict
    preview: Callable[[int], Iterator[Event]]
    guard: Guard | None = None
    average: Average | None = None
    text_stop: int | None = None
    save_every: int | None = None
    save_limit: int | None = None
    sample_every: int | None = None
    keep_best: bool = False
    done: int = 0
    stopped: str = ""  # why training ended early; empty otherwise
    images: int = 0
    pending: list[Pending] = field(default_factory=list)


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


def run(job: Job, controls: Controls) -> Iterator[Event]:
    """Train until `job.total` steps are done or somebody asks to stop; checkpoints and previews on the way."""
    while job.done < job.total and not job.stopped:
        yield from _one_step(job)
        if job.pending and len(job.pending) > 1:
            yield _settle(job)
        if _due(job.save_every, job) or controls.take("checkpoint"):
            yield from save(job, "interval")
        if _due(job.sample_every, job) or controls.take("sample"):
            yield from job.preview(job.done)
        if job.guard is not None and job.guard.due(job.done):
            yield from job.guard.read(job.done)
            job.stopped = job.guard.stop
            if job.guard.improved and job.keep_best:
                yield from save(job, "best")
                job.guard.remember_best(checkpoint.folder(job.run, job.done))
        while controls.pause and not controls.quit:
            time.sleep(0.1)
        if controls.quit:
            job.stopped = "asked to stop"
    while job.pending:
        yield _settle(job)


def _due(every: int | None, job: Job) -> bool:
    return every is not None and job.done % every == 0 and job.done < job.total


def _one_step(job: Job) -> Iterator[Event]:
    started = job.vitals.mark()
    factor = job.factor(job.done)
    rates = {name: rate * factor for name, rate in job.rates.items()}
    if job.text_stop is not None and job.done >= job.text_stop:
        rates = {name: rate if name == "unet" else 0.0 for name, rate in rates.items()}
        if job.done == job.text_stop:
            yield Notice(f"The text encoder stops learning after step {job.done}, as asked.")
    micro = [batch.to(job.vitals.device) for batch in job.batches.step()]
    loss = job.objective.of_step(micro, job.batches.accumulation)
    result = job.engine.step([batch.values for batch in micro], loss, rates)
    job.done += 1
    if job.average is not None:
        job.average.update(job.engine.master())
    # into pinned memory without waiting: a plain copy would wait for whatever is queued by then
    losses, norm = (value.float().to("cpu", non_blocking=True) for value in (result.losses, result.grad_norm))
    job.pending.append(Pending(job.done, rates["unet"], started, job.vitals.mark(), micro, losses, norm))


def _settle(job: Job) -> Step:
    """The oldest pending step as an event; waits for its losses, which are a step old by now."""
    pending = job.pending.pop(0)
    seconds, losses = job.vitals.seconds(pending.started, pending.ended), pending.losses
    total, instance, prior = losses[:, 0].sum().item(), losses[:, 1].nanmean().item(), losses[:, 2].nanmean().item()
    if not math.isfinite(total):
        raise Diverged(_explain(pending, total))
    images = sum(len(batch.target) for batch in pending.micro)
    job.images += images
    return Step(
        pending.step,
        job.total,
        total,
        instance,
        prior,
        pending.lr,
        float(pending.norm),
        seconds,
        images,
        **job.vitals.read(),
    )


def _explain(pending: Pending, total: float) -> str:
    pictures = ", ".join(dict.fromkeys(name for batch in pending.micro for name in batch.names))
    timesteps = ", ".join(str(int(t)) for batch in pending.micro for t in batch.values["timestep"])
    return (
        f"The loss became {total} in step {pending.step} (pictures: {pictures}; timesteps: {timesteps}; learning rate {pending.lr:g}).\n"
        "  likely cause: a learning rate that is too high, or fp16 overflow; earlier checkpoints are intact.\n"
        "  fix: lower --learning_rate, or use --mixed_precision bf16 (or no), then --resume_from_checkpoint latest."
    )


def save(job: Job, kind: str) -> Iterator[Event]:
    """A checkpoint of the step just done. Outstanding losses are checked first, so a diverged model is never saved."""
    while job.pending:
        yield _settle(job)
    started = time.perf_counter()
    state = job.engine.state_dict()
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if [name for name in broken if not name.startswith("engine.")]:  # the engine's own counters begin as nan
        raise Diverged(
            f"After step {job.done} weights or moments are no longer numbers ({broken[0]}); this checkpoint is not written, "
            "earlier ones are intact.\n  fix: lower --learning_rate, then --resume_from_checkpoint latest."
        )
    average = None if job.average is None else job.average.values
    size = sum(t.numel() * t.element_size() for tensors in (state, average or {}) for t in tensors.values())
    checkpoint.require_space(job.run, size, "a checkpoint")
    facts = job.facts | {"ema_steps": job.average.steps if job.average else 0}
    path = checkpoint.save(job.run, job.done, state, ema=average, batches=job.batches.state(), facts=facts)
    checkpoint.prune(job.run, job.save_limit, job.guard.best if job.guard else None)
    yield CheckpointSaved(job.done, str(path), checkpoint.size_bytes(path), time.perf_counter() - started, kind)


def resume(job: Job, path: Path) -> None:
    """Put everything back as it was when `path` was written."""
    state, engine, average, batches = checkpoint.load(path)
    job.engine.load_state_dict(engine)
    job.batches.restore(batches)
    if job.average is not None and average is not None:
        job.average.restore(average, state["ema_steps"])
    job.done = state["step"]
