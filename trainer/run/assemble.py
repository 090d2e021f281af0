"""A planned run put together: model loaded, class images drawn, caches filled, engine, batches, guard and loop's job.

The order keeps one large model on the card at a time: text encoders, then the denoiser for class images, then the VAE,
and the engine only when they have gone. A denoiser that does not fit the card whole is brought unit by unit from the start.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from trainer import memory, models
from trainer.data import photos as data
from trainer.data import pictures
from trainer.data.batches import Batches, ClassRows, PriorRows
from trainer.data.dataset import Dataset
from trainer.data.encode import Encoder
from trainer.data.photos import PhotoSet
from trainer.draw.painter import Painter
from trainer.events import Event, Notice, Stage, outcome
from trainer.files.mapped import give_back
from trainer.guard import held, judge, meters
from trainer.guard.guard import Guard
from trainer.machine.phase import Phase
from trainer.machine.vitals import Vitals
from trainer.models import Parts, adapters
from trainer.objective.loss import Objective
from trainer.plan.plan import Plan
from trainer.policy import Policy
from trainer.prior import identifier, prediction
from trainer.prior import images as prior
from trainer.run import loop
from trainer.run.prepare import Run
from trainer.run.schedule import factor
from trainer.settings.config import Config
from trainer.step.ema import Average
from trainer.step.engine import Engine


def build(run: Run) -> Stage[tuple[loop.Job, Painter]]:
    """All that training needs, and the painter of what it makes."""
    config, photos, spared, plan, device, folder = run.config, run.photos, run.spared, run.plan, run.device, run.cache
    train, model = config.train, config.model
    phase = Phase("load", device)
    yield phase.start(detail=model.name)
    parts = models.load_for(model)
    yield phase.end(
        f"{parts.family.title}, {sum(p.numel() for p in parts.denoiser.parameters()) / 1e6:.1f} million parameters in the denoiser"
    )
    if config.model.name != "demo" or config.chosen("data.identifier"):  # the small model has never heard of rifles
        yield from identifier.warnings_for(config.data.identifier, config.data.class_name, parts.tokenizers[0])

    encoder = Encoder.of(parts, config, plan.drawing, device)
    prior_words = [data.class_prompt(config), ""] if config.prior.with_prior_preservation else []
    texts = (yield from encoder.prompts(prior_words)) if prior_words else {}  # the engine takes the encoders over later
    engine = make_engine(config, parts, plan.policy, device) if plan.policy.stream == "all" else None
    painter = Painter(parts, run.look, plan.drawing, device, texts, engine)
    class_images, predictions = yield from _prior(config, plan, painter, folder)
    words = [*drawn_prompts(config), *([spared.prompt] if spared else [])]
    dataset = yield from encoder.dataset(photos, class_images, config, words)
    side = (config.data.resolution, config.data.resolution)
    unseen = (yield from encoder.images(held.held_views(photos, spared, side))) if config.guard.watch else []
    dataset, unseen_class = held.hold_out_class(dataset) if config.guard.watch else (dataset, [])

    engine = engine or make_engine(config, parts, plan.policy, device)
    yield from _attention(config, parts, plan.policy, dataset, device)
    drawing = replace(plan.drawing, batch=config.sample.batch_size or plan.drawing.batch)
    painter = replace(painter, drawing=drawing, texts=dataset.texts or dataset.tokens, engine=engine)
    objective = Objective.of(config, parts.noise(train.zero_terminal_snr))
    batches = Batches(
        dataset,
        objective,
        _prior_rows(dataset, objective, predictions),
        batch_size=train.train_batch_size,
        accumulation=train.gradient_accumulation_steps,
        seed=train.seed,
        caption_dropout=train.caption_dropout,
    )
    job = loop.Job(
        run.folder,
        engine,
        batches,
        objective,
        rates(config),
        factor(train, train.max_train_steps),
        train.max_train_steps,
        Vitals(device),
        {"policy": plan.policy.as_json(), "drawing": plan.drawing.as_json(), "model": parts.digest},
        preview=lambda step: iter(()),
        average=Average(engine.master(), train.ema_decay) if train.ema else None,
        text_stop=train.text_encoder_stop_step,
        save_every=config.checkpoint.checkpointing_steps,
        save_limit=config.checkpoint.checkpoints_total_limit,
        sample_every=config.sample.validation_steps,
        keep_best=config.guard.keep_best,
    )
    torch.manual_seed(train.seed)  # what dropout draws from; every other draw has a generator of its own
    if config.guard.watch:
        seen = [dataset.instance(index, 0) for index in range(len(dataset.instances))]
        probe = meters.Probe(dataset, objective, train.train_batch_size, train.seed)
        losses = meters.Losses.of(engine, probe, {"held-out": unseen, "seen": seen, "class": unseen_class})
        job.guard = Guard(run.folder, config.guard, losses, _pictures(config, photos, painter))
    return job, painter


def rates(config: Config) -> dict[str, float]:
    """Learning rate by model name, before the schedule."""
    train = config.train
    scale = train.train_batch_size * train.gradient_accumulation_steps if train.scale_lr else 1
    found = {"unet": train.learning_rate * scale}
    if train.train_text_encoder:
        found |= {"text": train.text_encoder_lr * scale, "text_2": train.text_encoder_lr * scale}
    return found


def make_engine(config: Config, parts: Parts, policy: Policy, device: torch.device) -> Engine:
    """The engine over `parts`, with adapters and the techniques that change modules applied first, in this order."""
    if config.train.method != "full":
        adapters.inject(
            parts,
            config.lora,
            dora=config.train.method == "dora",
            text=config.train.train_text_encoder,
            seed=config.train.seed,
        )
    memory.prepare(parts.denoiser, policy, device)
    engine = Engine(parts.family.units(parts, text=config.train.train_text_encoder), policy, device)
    give_back()
    return engine


def _attention(config: Config, parts: Parts, policy: Policy, dataset: Dataset, device: torch.device) -> Iterator[Event]:
    """On a card: the attention kernel that takes this run's shapes, compared with plain mathematics before it trains."""
    if device.type != "cuda" or not memory.attention.enabled(policy):
        return
    rows = config.train.train_batch_size * (2 if config.prior.with_prior_preservation else 1)
    kinds = {kind: None for size in dataset.groups for kind in memory.attention.shapes(parts.denoiser, rows, *size)}
    yield Notice("\n".join(memory.attention.verify(kinds, policy.math, device, policy.attention)))
    memory.allocator.release()


def _prior(
    config: Config, plan: Plan, painter: Painter, folder: Path
) -> Stage[tuple[PhotoSet | None, prediction.Predictions | None]]:
    """(class images, predictions) by the untouched model: one of them, or neither."""
    if not config.prior.with_prior_preservation:
        return None, None
    # nothing was learned yet: whatever state a streamed engine has already stays where the plan counts it
    batch = config.prior.sample_batch_size or plan.drawing.batch
    painter = replace(painter, drawing=replace(plan.drawing, batch=batch, park=False))
    if config.prior.by == "prediction":
        rows = config.train.max_train_steps * config.train.train_batch_size * config.train.gradient_accumulation_steps
        draws = min(prediction.DRAWS, max(rows, 16))  # a short run cannot use more
        latents = min(prediction.LATENTS, draws // 4)
        return None, (yield from prediction.ensure(painter, config, folder, draws=draws, latents=latents))
    return (yield from prior.ensure(painter, config, prior.folder_for(painter.parts, config, folder))), None


def _prior_rows(dataset: Dataset, objective: Objective, predictions: prediction.Predictions | None) -> PriorRows | None:
    """The class half of a step: predictions where there are any, else class images, else nothing."""
    if predictions is not None:
        return prediction.PredictedRows(predictions, dataset, objective)
    return ClassRows(dataset, objective) if dataset.class_count else None


def drawn_prompts(config: Config) -> list[str]:
    """Every prompt that previews and the guard may draw, and the one they are steered away from."""
    previews = config.sample.validation_prompt if config.sample.num_validation_images else []
    found = [*previews, *meters.prompts(config)]
    return [*found, config.sample.negative_prompt] if found else []


def _pictures(config: Config, photos: PhotoSet, painter: Painter) -> meters.Pictures | None:
    """The guard's eye, where there is a judge that can look and a class to compare with."""
    name = config.guard.judge
    if name == "auto":
        name = "demo" if config.model.name == "demo" else "none"
    if name == "none" or not meters.prompts(config):
        return None
    quick = replace(painter, look=replace(painter.look, steps=min(20, painter.look.steps)))
    shown = [pictures.read(Path(photo.path)).rgb for photo in photos.photos]
    return meters.Pictures(
        judge.load(name),
        lambda prompts, seeds: outcome(quick.paint(prompts, seeds)),
        shown,
        config.data.instance_prompt,
        data.class_prompt(config),
    )


def resumed(job: loop.Job, point: Path) -> Notice:
    """Put the job back to where `point` was written."""
    loop.resume(job, point)
    return Notice(f"Resumed from {point} after step {job.done}.")
