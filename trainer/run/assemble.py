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
from trainer.data import encode as cache
from trainer.data import photos as data
from trainer.data import pictures
from trainer.data.batches import Batches
from trainer.data.dataset import Dataset, Example
from trainer.data.photos import Photo, PhotoSet
from trainer.draw.painter import Painter
from trainer.events import Event, Notice, Stage, outcome
from trainer.files.mapped import give_back
from trainer.files.store import Store
from trainer.guard import guard, judge
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

    texts = yield from _class_texts(config, parts, device, folder)  # by encoders that the engine has not taken over yet
    engine = make_engine(config, parts, plan.policy, device) if plan.policy.stream == "all" else None
    painter = Painter(parts, run.look, plan.drawing, device, texts, engine)
    class_images, predictions = yield from _prior(config, plan, painter, folder)
    dataset = yield from cache.ensure(
        parts,
        photos,
        class_images,
        config,
        device,
        folder,
        prompts=[*drawn_prompts(config), *([spared.prompt] if spared else [])],
        vae_dtype=plan.drawing.vae_dtype,
        tile=plan.drawing.tile,
    )
    held = yield from _held_out(config, parts, photos, spared, plan, device, folder)
    dataset, held_class = guard.hold_out_class(dataset) if config.guard.watch else (dataset, [])

    engine = engine or make_engine(config, parts, plan.policy, device)
    yield from _attention(config, parts, plan.policy, dataset, device)
    drawing = replace(plan.drawing, batch=config.sample.batch_size or plan.drawing.batch)
    painter = replace(painter, drawing=drawing, texts=dataset.texts or dataset.tokens, engine=engine)
    objective = Objective.of(config, parts.noise(train.zero_terminal_snr))
    scaling = parts.vae.config.scaling_factor
    batches = Batches(
        dataset,
        objective,
        scaling=scaling,
        batch_size=train.train_batch_size,
        accumulation=train.gradient_accumulation_steps,
        seed=train.seed,
        caption_dropout=train.caption_dropout,
        predictions=predictions,
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
        losses = guard.Losses.of(
            engine,
            dataset,
            objective,
            scaling,
            {"held-out": held, "seen": seen, "class": held_class},
            train.train_batch_size,
            train.seed,
        )
        job.guard = guard.Guard(run.folder, config.guard, losses, _pictures(config, photos, painter))
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


def _class_texts(config: Config, parts: Parts, device: torch.device, folder: Path) -> Iterator[Event]:
    """What the class is drawn from, where it is."""
    if not config.prior.with_prior_preservation:
        return {}
    cached = folder if config.memory.cache_text else None
    return (yield from cache.encode_prompts(parts, [data.class_prompt(config), ""], device, cached))


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


def _held_out(
    config: Config, parts: Parts, photos: PhotoSet, spared: Photo | None, plan: Plan, device: torch.device, folder: Path
) -> Iterator[Event]:
    """Examples of the subject that training never sees."""
    if not config.guard.watch:
        return []
    side = config.data.resolution
    store = Store(folder / "latents" if config.memory.cache_latents else None)
    found: list[Example] = yield from cache.images(
        parts, guard.held_views(photos, spared, (side, side)), store, device, plan.drawing.vae_dtype, plan.drawing.tile
    )
    return found


def drawn_prompts(config: Config) -> list[str]:
    """Every prompt that previews and the guard may draw, and the one they are steered away from."""
    previews = config.sample.validation_prompt if config.sample.num_validation_images else []
    found = [*previews, *guard.prompts(config)]
    return [*found, config.sample.negative_prompt] if found else []


def _pictures(config: Config, photos: PhotoSet, painter: Painter) -> guard.Pictures | None:
    """The guard's eye, where there is a judge that can look and a class to compare with."""
    name = config.guard.judge
    if name == "auto":
        name = "demo" if config.model.name == "demo" else "none"
    if name == "none" or not guard.prompts(config):
        return None
    quick = replace(painter, look=replace(painter.look, steps=min(20, painter.look.steps)))
    shown = [pictures.read(Path(photo.path)).rgb for photo in photos.photos]
    return guard.Pictures(
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
