"""A whole run as one stream of events: prepare, plan, class images, cache, train, save, draw, export.

Each stage finds finished work on disk by content and skips it, and only one large model is on the card at a time. The
cheap checks come first: whatever the person at the keyboard can mend is said before anything heavy is loaded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext

import torch

from trainer import memory
from trainer.draw.painter import Painter
from trainer.draw.preview import drawn, preview
from trainer.events import (
    Controls,
    Event,
    Notice,
    PhotosScanned,
    RunStarted,
    Stage,
    Step,
    watched,
    while_wanted,
)
from trainer.files.claim import claimed
from trainer.machine.phase import Phase
from trainer.models import Parts
from trainer.out import as_diffusers, by_name, export, inversion
from trainer.out.metadata import metadata
from trainer.out.strength import Between
from trainer.plan.plan import Plan
from trainer.run import assemble, limit, loop, resuming, saving
from trainer.run.ending import Ending, Quit
from trainer.run.measured import again, probe
from trainer.run.prepare import Run, prepare
from trainer.run.trained import Trained
from trainer.settings import overlay
from trainer.settings.config import Config


def run(config: Config, controls: Controls) -> Iterator[Event]:
    """The whole job. Raises ConfigError before anything is written; afterwards ends with `Finished`, but for a fault of ours."""
    begun = time.perf_counter()
    ready = prepare(config)
    resuming.check(ready)
    ready.team.wait()  # nobody looks for what is there already when the first one has begun to write
    ending = Ending(ready, begun)
    with claimed(ready.folder) if ready.team.leads else nullcontext():
        yield from announce(ready)
        yield from ending.watch(work(ready, controls), controls)
        yield from ending.against_plan()
        yield ending.finished()


def announce(run: Run) -> Iterator[Event]:
    """The settings as they will be, in the run's folder; what is there and what is planned; the budget kept."""
    config, photos = run.config, run.photos
    moved = list(resuming.make_room(run))
    if run.team.leads:
        run.folder.mkdir(parents=True, exist_ok=True)
        overlay.write(config, config.provenance, run.folder / "config.toml")
    yield RunStarted(
        str(run.folder),
        config.model_dump(),
        dict(config.provenance),
        device_name(run.device, run.team.size),
        config.model.name,
        resuming.versions(),
        str(run.resume or ""),
    )
    paths = [photo.path for photo in photos.photos]
    yield PhotosScanned(photos.summary, paths, photos.ignored, list(photos.problems), list(photos.lines()))
    yield from (*moved, *run.notices)
    yield from run.plan.events()
    yield limit.enforce(run.plan.budget_bytes, run.device, run.plan.constants.context.amount)


def work(run: Run, controls: Controls) -> Stage[str]:
    """Everything that takes time; once more by another plan, where the first does not hold. Returns why training ended early,
    or nothing."""
    stopped, plan = yield from attempt(run, controls)
    if plan is not None:
        yield from again.go_on(run, plan)
        stopped, _ = yield from attempt(run, controls)
    return stopped


def attempt(run: Run, controls: Controls) -> Stage[tuple[str, Plan | None]]:
    """All of a run by one plan. Returns why training ended early, or nothing, and the plan that it is to go on with."""

    def unless_asked_to_quit(event: Event) -> None:
        """Until there is something to save; finished class images and caches stay for the next time."""
        if controls.quit:
            raise Quit

    trained, painter = yield from watched(get_ready(run), unless_asked_to_quit)
    if run.config.run.probe and not run.outgrown:
        yield from probe.measure(run, trained, painter)
    if trained.guard is not None:
        trained.guard.controls = controls
    if run.resume:
        yield from saving.resume(trained, run.resume)
        again.arrived(run, trained)
    elif trained.guard is not None:
        yield from trained.guard.begin()
    # asked in the middle of reading the base model, there is nothing yet that later readings could be compared with
    if run.team.any(controls.quit)[0]:
        raise Quit
    run.team.wait()
    watch = again.Watch(run, trained)
    stopped = yield from train(run, trained, painter, controls, watch)
    if watch.plan is None:
        yield from trained.first(finish(run, trained, painter, controls))
    return stopped, watch.plan


def finish(run: Run, trained: Trained, painter: Painter, controls: Controls) -> Stage[None]:
    """What training leaves behind, in the order of what would be missed most."""
    yield from save(run, trained, painter.parts)
    # with everything saved, who asks to stop is obeyed at once: the next start goes on with the pictures
    yield from while_wanted(draw(run, painter, trained.step), controls)
    yield from while_wanted(write(run, trained, painter.parts), controls)


def get_ready(run: Run) -> Stage[tuple[Trained, Painter]]:
    """Class images and caches, found or made; then the engine takes the weights over."""
    parts = yield from assemble.load(run)
    resuming.same_model(run, parts)
    painter = yield from run.team.in_turn(assemble.untouched(run, parts))
    keep = yield from assemble.class_images(run, painter)
    yield from resuming.same_class_images(run, keep)
    cached = yield from run.team.in_turn(assemble.cache(run, parts, keep))
    return (yield from assemble.trained(run, painter, cached, keep))


def train(run: Run, trained: Trained, painter: Painter, controls: Controls, watch: again.Watch) -> Stage[str]:
    """All steps, or until somebody, the guard or `watch` ends it early; then says why."""
    memory.allocator.release()  # what was cached before is none of a step's
    phase, spills = Phase("train", run.device), limit.Spills(run.device)
    yield phase.start(trained.total, f"{trained.total} steps")
    first, begun, images = trained.step, time.perf_counter(), 0

    def see(event: Event) -> list[Event]:
        nonlocal images
        images += event.images if isinstance(event, Step) else 0
        return spills(event)

    steps = loop.run(
        trained,
        run.habits,
        controls,
        save=lambda kind: keep(run, trained, painter.parts, kind),
        preview=lambda step: draw(run, painter, step),
        drawn=lambda step: drawn(_shown(run), run.folder / "samples", step),
        outgrown=watch,
    )
    try:
        stopped = yield from watched(steps, see)
        if watch.plan is not None:
            yield from trained.first(saving.save(trained, "moved", run.habits))
            again.put_down(run, trained)
    except torch.OutOfMemoryError as failure:
        stopped = yield from watch.broke_off(failure)
    seconds = time.perf_counter() - begun
    detail = f"{trained.step - first} steps, {images / max(seconds, 1e-9):.2f} images a second"
    if twice := trained.engine.settling.again:
        detail += f"; made twice, because they had to be clipped: {twice} (--no-early_updates makes no step twice)"
    yield phase.end(detail + (f"; stopped: {stopped}" if stopped else ""))
    return stopped


def save(run: Run, trained: Trained, parts: Parts) -> Stage[None]:
    """What a run can go on from, before anything is drawn: too little memory for pictures then loses nothing."""
    phase = Phase("save", run.device)
    yield phase.start()
    yield from keep(run, trained, parts, "last")
    yield phase.end()


def keep(run: Run, trained: Trained, parts: Parts, kind: str) -> Stage[None]:
    """A checkpoint. As diffusers' scripts do, each checkpoint-N holds what was trained where `from_pretrained` finds it."""
    point = yield from saving.save(trained, kind, run.habits)
    if run.config.run.layout == "diffusers" and point.name.startswith("checkpoint-"):
        as_diffusers.readable(parts, trained.weights, point, run.config)


def _shown(run: Run) -> list[tuple[str, int]]:
    """(prompt, seed) of each preview: the same at every step."""
    sample, seed = run.config.sample, run.config.train.seed
    return [(prompt, seed + i) for prompt in sample.validation_prompt for i in range(sample.num_validation_images)]


def draw(run: Run, painter: Painter, step: int) -> Stage[None]:
    """Pictures of the weights as they are, each prompt with the same seeds at every step. Too little memory costs pictures only."""
    if not (rows := _shown(run)):
        return
    try:
        yield from preview(painter, rows, run.folder / "samples", step)
    except torch.OutOfMemoryError:
        memory.allocator.release()
        yield Notice(
            "There was not enough memory to draw pictures; training is not affected.",
            "Set --sample.batch_size 1, or --vae_tile 256.",
            "warning",
        )


def write(run: Run, trained: Trained, parts: Parts) -> Stage[None]:
    """The model in every format that was asked for: the moving average, where one was kept."""
    settings, facts, place = run.config.export, metadata(run.config, run.photos), run.folder / "model"
    weights = Between(parts, run.config.model).scaled(trained.weights, settings.strength)
    events = export.write(parts, weights, place, settings.formats, settings.precision, facts, replace=True)
    if settings.output_name:
        events = by_name.named(events, run.folder, settings.output_name, run.config.train.method)
    yield from as_diffusers.spread(events, run.folder) if run.config.run.layout == "diffusers" else events
    yield from inversion.write(parts, weights, place, run.config.data.identifier)
    if older := export.set_others_aside(place, settings.formats):
        yield Notice(f"Files of an earlier export, with other weights, are in {older} now.")


def device_name(device: torch.device, cards: int) -> str:
    """Cards that differ are named by a notice of the plan."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({torch.get_num_threads()} threads)"
    return name if cards == 1 else f"{cards} x {name}"
