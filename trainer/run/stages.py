"""A whole run as one stream of events: understand, plan, put together, train, save, sample, export.

Each stage finds finished work on disk by content and skips it, and only one large model is on the card at a time. The
cheap checks come first: whatever the person at the keyboard can mend is said before anything heavy is loaded.
The file is longer than most, because a run read from top to bottom should not jump to another file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import torch

from trainer import memory, models
from trainer.data import photos as data
from trainer.data.photos import Photo, PhotoSet
from trainer.draw import preview as sample
from trainer.draw.painter import Painter
from trainer.errors import ConfigError
from trainer.events import (
    CheckpointSaved,
    Controls,
    Event,
    Finished,
    Notice,
    PhaseEnded,
    PhotosScanned,
    RunStarted,
    Step,
    outcome,
)
from trainer.guard import guard
from trainer.machine.phase import Phase
from trainer.models import Parts
from trainer.out import checkpoint, export
from trainer.plan import measured as budget
from trainer.plan import planner
from trainer.plan.plan import Plan
from trainer.prior import images as prior
from trainer.run import loop, settle
from trainer.run.assemble import build, resumed
from trainer.settings import checks, overlay
from trainer.settings.config import Config


@dataclass
class Prepared:
    """A run that is understood but not started: settings without blanks, photos, plan, and where to resume."""

    config: Config
    photos: PhotoSet
    spared: Photo | None  # a photo that training never sees, where there are enough
    plan: Plan
    device: torch.device
    run: Path
    resume: Path | None
    notices: list[Notice] = field(default_factory=list)


class Quit(Exception):
    """Somebody asked to stop before there was anything to save."""


def run(config: Config, controls: Controls) -> Iterator[Event]:
    """The whole job. Raises ConfigError before anything is written; afterwards always ends with `Finished`."""
    begun = time.perf_counter()
    ready = prepare(config)
    yield from _announce(ready)
    measured: dict[str, int] = {}
    status, done, why, error = "failed", 0, "", ""
    try:
        for event in _work(ready, controls):
            if isinstance(event, (Step, CheckpointSaved)):  # a run resumed at its end takes no step
                done = event.step
            if isinstance(event, PhaseEnded):
                measured[event.phase] = max(measured.get(event.phase, 0), event.vram_peak_bytes)
                why = event.detail.partition("stopped: ")[2] or why
            yield event
        status = "interrupted" if controls.quit else "done"
    except (Quit, KeyboardInterrupt):
        status = "interrupted"
    except (loop.Diverged, ConfigError) as failure:
        error = str(failure)
    except torch.OutOfMemoryError as failure:
        fix = "a smaller --preset (or --vram_gb), or close other programs; then --resume_from_checkpoint latest"
        error = f"{str(failure).splitlines()[0]}\n  fix: {fix}"
    yield from _against_plan(ready, measured)
    yield Finished(status, done, time.perf_counter() - begun, str(ready.run), _farewell(ready, status, why), error)


def prepare(config: Config) -> Prepared:
    """Everything that can be known without loading weights. Raises ConfigError with the fix; writes nothing."""
    config = config.model_copy(deep=True)
    memory.allocator.apply()  # before CUDA starts
    settle.subject(config)
    family, facts = models.describe(
        config.model.name,
        family=config.model.family,
        revision=config.model.revision,
        variant=config.model.variant,
        prediction_type=config.model.prediction_type,
    )
    models.check_weights(facts)
    if config.model.vae:
        models.check_vae(config.model.vae)
    if config.guard.watch:
        checks.judge(config.guard.judge)
    settle.learning(config, family)
    photos = data.scan(config.data, family.resolution)
    photos, spared = guard.hold_out(photos) if config.guard.watch else (photos, None)
    settle.schedule(config, family, photos)
    settle.places(config)
    if config.prior.with_prior_preservation and config.prior.by == "images":
        prior.check_early(config, config.data.resolution)
    run = Path(config.run.output_dir)
    resume = (
        checkpoint.locate(run, config.checkpoint.resume_from_checkpoint)
        if config.checkpoint.resume_from_checkpoint
        else None
    )
    device = choose_device(config)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        checks.card(config, properties.total_memory, properties.name)
    plan = planner.plan(config, facts, device)
    memory.check(plan.policy, facts)
    for key, value in plan.settings.items():
        if "." in key and value is not None and not config.chosen(key):
            config.settle(key, value, "planner")
    notices = [Notice(text, level="warning") for text in photos.problems] + [Notice(text) for text in photos.advice]
    if config.checkpoint.resume_from_checkpoint == "latest" and resume is None:
        notices.append(Notice(f"{run} holds no checkpoint yet: starting from the beginning."))
    if spared is not None:
        notices.append(Notice(f"{spared.name} is kept back to measure overfitting (--no-watch trains on it, too)."))
    return Prepared(config, photos, spared, plan, device, run, resume, notices)


def choose_device(config: Config) -> torch.device:
    """CUDA where there is one and nobody asked for the CPU; accelerate decides which."""
    if config.run.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--device cuda was asked for, but torch sees no CUDA card.",
            "Run `python -m trainer doctor`, or leave --device out to train on the CPU.",
        )
    from accelerate import Accelerator

    device = Accelerator(cpu=config.run.device == "cpu").device
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.train.allow_tf32
    return device


def _announce(ready: Prepared) -> Iterator[Event]:
    config, photos = ready.config, ready.photos
    ready.run.mkdir(parents=True, exist_ok=True)
    overlay.write(config, config.provenance, ready.run / "config.toml")
    yield RunStarted(
        str(ready.run),
        config.model_dump(),
        dict(config.provenance),
        device_name(ready.device),
        config.model.name,
        versions(),
        str(ready.resume or ""),
    )
    yield PhotosScanned(photos.summary, [photo.path for photo in photos.photos], photos.ignored, list(photos.problems))
    yield from ready.notices
    yield from ready.plan.events()
    yield budget.enforce(ready.plan.budget_bytes, ready.device)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.get_num_threads()} threads)"


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "diffusers", "transformers", "accelerate", "safetensors")}


def _work(ready: Prepared, controls: Controls) -> Iterator[Event]:
    """Everything that takes time."""
    built = build(ready.config, ready.photos, ready.spared, ready.plan, ready.device, ready.run)
    job, painter = yield from _quittable(built, controls)
    job.preview = lambda step: _preview(ready, painter, step)
    if ready.config.run.probe:
        yield from _probe(ready, job, painter)
    if job.guard is not None:
        yield from job.guard.begin()  # before resuming: what it compares with is the base model
    if ready.resume:
        yield resumed(job, ready.resume)
    yield from _train(ready, job, controls)
    if not controls.quit:
        yield from _preview(ready, painter, job.done)
        yield from _export(ready, job, painter.parts)


def _quittable(events: Iterator[Event], controls: Controls) -> Iterator[Event]:
    """The same events and result, unless somebody asks to quit: finished class images and caches stay for the next time."""
    while True:
        try:
            event = next(events)
        except StopIteration as stop:
            return stop.value
        yield event
        if controls.quit:
            raise Quit


def _train(ready: Prepared, job: loop.Job, controls: Controls) -> Iterator[Event]:
    phase = Phase("train", ready.device)
    yield phase.start(job.total, f"{job.total} steps")
    first, begun = job.done, time.perf_counter()
    yield from _spills(loop.run(job, controls), ready.device)
    seconds = time.perf_counter() - begun
    detail = f"{job.done - first} steps, {job.images / max(seconds, 1e-9):.2f} images a second"
    yield phase.end(detail + (f"; stopped: {job.stopped}" if job.stopped else ""))
    phase = Phase("save", ready.device)
    yield phase.start()
    yield from loop.save(job, "last")
    yield phase.end()


def _spills(events: Iterator[Event], device: torch.device) -> Iterator[Event]:
    """Watches steps for a driver that lends host memory, which makes them slow without a word; says so once."""
    physical = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    seconds: list[float] = []
    for event in events:
        yield event
        if physical and isinstance(event, Step):
            seconds.append(event.seconds)
            if notice := budget.spill_watch(event.vram_reserved_bytes, physical, seconds):
                yield notice
                physical = 0


def _preview(ready: Prepared, painter: Painter, step: int) -> Iterator[Event]:
    """Pictures of the weights as they are, each prompt with the same seeds at every step. Too little memory costs pictures only."""
    config = ready.config
    per_prompt, prompts = config.sample.num_validation_images, config.sample.validation_prompt
    if not per_prompt or not prompts:
        return
    rows = [(prompt, config.train.seed + i) for prompt in prompts for i in range(per_prompt)]
    try:
        yield from sample.preview(painter, rows, ready.run / "samples", step)
    except torch.OutOfMemoryError:
        memory.allocator.release()
        yield Notice(
            "There was not enough memory to draw pictures; training is not affected.",
            "Set --sample.batch_size 1, or --vae_tile 256.",
            "warning",
        )


def _export(ready: Prepared, job: loop.Job, parts: Parts) -> Iterator[Event]:
    config = ready.config
    weights = job.average.values if job.average else job.engine.master
    yield from export.write(
        parts,
        weights,
        ready.run / "model",
        config.export.formats,
        config.export.precision,
        metadata(config),
        replace=True,
    )


def metadata(config: Config) -> dict[str, str]:
    """Training settings that travel inside exported files."""
    keys = (
        "model.name",
        "data.instance_prompt",
        "data.resolution",
        "prior.with_prior_preservation",
        "prior.class_prompt",
        "prior.prior_loss_weight",
        "train.method",
        "train.max_train_steps",
        "train.learning_rate",
        "train.train_text_encoder",
        "train.optimizer",
        "train.snr_gamma",
        "train.seed",
    )
    return {key: str(config.value(key)) for key in keys}


def _probe(ready: Prepared, job: loop.Job, painter: Painter) -> Iterator[Event]:
    """One step that teaches nothing, one batch of pictures and one dummy save, on a card: the plan corrected by doing."""
    ready.plan = budget.probe(ready.plan, ready.device, probes(ready, job, painter))
    yield from ready.plan.events()


def probes(ready: Prepared, job: loop.Job, painter: Painter) -> dict[str, Callable[[], object]]:
    """Phase -> what stands for it: the stages' own calls, shortened where they repeat themselves."""
    config = ready.config
    state = job.batches.state()
    micro = [batch.to(ready.device) for batch in job.batches.step()]
    job.batches.restore(state)

    def step() -> object:
        def loss(prediction: torch.Tensor, i: int) -> tuple[torch.Tensor, ...]:
            return job.objective.loss(prediction, micro[i].target, micro[i].weights, micro[i].instances, micro[i].mask)

        return job.engine.step([m.values for m in micro], loss, job.rates, update=False)

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


def _against_plan(ready: Prepared, measured: dict[str, int]) -> Iterator[Event]:
    """Plan and measurement side by side; a deviation comes with a line for a bug report."""
    if any(measured.values()):
        text, notices = budget.compare(ready.plan, measured)
        yield Notice(text)
        yield from notices


def _farewell(ready: Prepared, status: str, stopped: str) -> str:
    """Where everything is, and what to type next."""
    run, config = ready.run, ready.config
    if status != "done":
        again = f"python -m trainer --config {run}/config.toml --output_dir {run} --resume_from_checkpoint latest"
        return f"The run is in {run}.\nGo on with: {again}"
    lines = [
        f"model       {run / 'model'}",
        *([f"pictures    {run / 'samples'}"] if (run / "samples").is_dir() else []),
        f"settings    {run / 'config.toml'}",
        f"log         {run / 'log.jsonl'}",
    ]
    if stopped:
        lines.insert(0, f"stopped early: {stopped}")
    lines.append(f"draw more:  python -m trainer sample {run} --prompt {ready.photos.prompts[0]!r}")
    if config.model.name == "demo":
        lines.append("your own:   python -m trainer --preset 12gb --instance_data_dir my_photos --class_name dog")
    return "\n".join(lines)
