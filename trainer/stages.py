"""A whole run as one stream of events: understand, plan, load, class images, caches, train, save, sample, export.

Each stage finds finished work on disk by content and skips it, and only one large model is on the card at a time. The
cheap checks come first: whatever the person at the keyboard can mend is said before anything heavy is loaded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image

from trainer import (
    adapters,
    cache,
    checkpoint,
    data,
    export,
    guard,
    identifier,
    judge,
    loop,
    memory,
    models,
    overlay,
    pictures,
    planner,
    prediction,
    prior,
    sample,
    sampler,
    settle,
)
from trainer.batches import Batches
from trainer.config import Config, ConfigError
from trainer.data import Photo, PhotoSet
from trainer.dataset import Dataset
from trainer.ema import Average
from trainer.engine import Engine
from trainer.events import Controls, Event, Finished, Notice, PhotosScanned, RunStarted
from trainer.models import Parts
from trainer.objective import Objective
from trainer.phases import Phase
from trainer.policy import Policy
from trainer.sampler import Look
from trainer.schedule import factor
from trainer.store import Store
from trainer.vitals import Vitals


@dataclass
class Prepared:
    """A run that is understood but not started: settings without blanks, photos, plan, and where to resume."""

    config: Config
    family: models.Family
    photos: PhotoSet
    spared: Photo | None  # a photo that training never sees, where there are enough
    plan: planner.Plan
    device: torch.device
    run: Path
    resume: Path | None
    notices: list[Notice] = field(default_factory=list)


def run(config: Config, controls: Controls) -> Iterator[Event]:
    """The whole job. Raises ConfigError before anything is written; afterwards always ends with `Finished`."""
    begun = time.perf_counter()
    ready = prepare(config)
    yield from _announce(ready)
    done = 0
    try:
        job, parts, dataset = yield from _build(ready)
        done = job.done
        yield from _train(ready, job, controls)
        done = job.done
        stopped = controls.quit
        if not stopped:
            yield from _preview(ready, job, parts, dataset, job.done)
            yield from _export(ready, job.engine, parts, job.average)
        status = "interrupted" if stopped else "done"
        yield Finished(status, done, time.perf_counter() - begun, str(ready.run), _farewell(ready, status, job.stopped))
    except (loop.Diverged, ConfigError) as error:
        yield Finished("failed", done, time.perf_counter() - begun, str(ready.run), _farewell(ready, "failed", ""), str(error))


def prepare(config: Config) -> Prepared:
    """Everything that can be known without loading weights. Raises ConfigError with the fix; writes nothing."""
    config = config.model_copy(deep=True)
    settle.subject(config)
    family, facts = models.describe(config.model.name, family=config.model.family, revision=config.model.revision,
                                    variant=config.model.variant, prediction_type=config.model.prediction_type)  # fmt: skip
    settle.learning(config, family)
    photos = data.scan(config.data, family.resolution)
    photos, spared = guard.hold_out(photos) if config.guard.watch else (photos, None)
    settle.schedule(config, family, photos)
    settle.places(config)
    run = Path(config.run.output_dir)
    resume = checkpoint.locate(run, config.checkpoint.resume_from_checkpoint) if config.checkpoint.resume_from_checkpoint else None
    device = choose_device(config)
    plan = planner.plan(config, facts, device)
    notices = [Notice(text, level="warning") for text in photos.problems] + [Notice(text) for text in photos.advice]
    if config.checkpoint.resume_from_checkpoint == "latest" and resume is None:
        notices.append(Notice(f"{run} holds no checkpoint yet: starting from the beginning."))
    if spared is not None:
        notices.append(Notice(f"{spared.name} is kept back to measure overfitting (--no-watch trains on it, too)."))
    return Prepared(config, family, photos, spared, plan, device, run, resume, notices)


def choose_device(config: Config) -> torch.device:
    """CUDA where there is one and nobody asked for the CPU; accelerate decides which."""
    if config.run.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda was asked for, but torch sees no CUDA card.",
                          "Run `python -m trainer doctor`, or leave --device out to train on the CPU.")  # fmt: skip
    from accelerate import Accelerator

    return Accelerator(cpu=config.run.device == "cpu").device


def _announce(ready: Prepared) -> Iterator[Event]:
    config, photos = ready.config, ready.photos
    ready.run.mkdir(parents=True, exist_ok=True)
    overlay.write(config, config.provenance, ready.run / "config.toml")
    yield RunStarted(str(ready.run), config.model_dump(), dict(config.provenance), device_name(ready.device), config.model.name,
                     versions(), str(ready.resume or ""))  # fmt: skip
    yield PhotosScanned(photos.summary, [photo.path for photo in photos.photos], photos.ignored, list(photos.problems))
    yield from ready.notices
    yield from ready.plan.events()


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.get_num_threads()} threads)"


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "diffusers", "transformers", "accelerate", "safetensors")}


def _build(ready: Prepared) -> Iterator[Event]:
    """Load, draw class images, fill the caches, and set the engine up; returns (job, parts, dataset)."""
    config, device, plan = ready.config, ready.device, ready.plan
    folder = Path(config.run.cache_dir)
    phase = Phase("load", device)
    yield phase.start(detail=config.model.name)
    model = config.model
    parts = models.load(model.name, family=model.family, revision=model.revision, variant=model.variant, vae=model.vae,
                        prediction_type=model.prediction_type)  # fmt: skip
    yield phase.end(f"{ready.family.name}, {sum(p.numel() for p in parts.unet.parameters()) / 1e6:.1f} million parameters in the denoiser")
    yield from identifier.warnings_for(config.data.identifier, config.data.class_name, parts.tokenizers[0])

    texts = yield from _base_texts(config, parts, device, folder)
    engine = None
    if plan.policy.stream == "all":  # the denoiser does not fit the card whole, so the engine brings it unit by unit here, too
        engine = make_engine(config, parts, plan.policy, device)
    class_images, predictions = yield from _prior(config, parts, plan, device, folder, texts, engine)
    dataset = yield from cache.ensure(parts, ready.photos, class_images, config, device, folder,
                                      prompts=[*_drawn_prompts(config), *guard.prompts(config)], vae_dtype=plan.vae_dtype)  # fmt: skip
    size = (config.data.resolution, config.data.resolution)
    views = guard.held_views(ready.photos, ready.spared, size) if config.guard.watch else []
    store = Store(folder / "latents" if config.memory.cache_latents else None)
    held = yield from cache.images(parts, views, store, device, plan.vae_dtype, config.memory.vae_tile)
    engine = engine or make_engine(config, parts, plan.policy, device)
    objective = Objective(models.abar(parts, config.train.zero_terminal_snr), parts.prediction_type, config.train.snr_gamma,
                          config.train.offset_noise, config.prior.prior_loss_weight)  # fmt: skip
    dataset, held_class = guard.hold_out_class(dataset) if config.guard.watch else (dataset, [])
    batches = Batches(dataset, objective, scaling=parts.vae.config.scaling_factor, batch_size=config.train.train_batch_size,
                      accumulation=config.train.gradient_accumulation_steps, seed=config.train.seed,
                      caption_dropout=config.train.caption_dropout, predictions=predictions)  # fmt: skip
    train = config.train
    scale = train.train_batch_size * train.gradient_accumulation_steps if train.scale_lr else 1
    rates = {"unet": train.learning_rate * scale}
    if train.train_text_encoder:
        rates |= {"text": train.text_encoder_lr * scale, "text_2": train.text_encoder_lr * scale}
    job = loop.Job(ready.run, engine, batches, objective, rates, factor(train, train.max_train_steps), train.max_train_steps,
                   Vitals(device), {"policy": plan.policy.as_json(), "model": parts.digest}, preview=lambda step: iter(()),
                   average=Average(engine.master(), train.ema_decay) if train.ema else None, text_stop=train.text_encoder_stop_step,
                   save_every=config.checkpoint.checkpointing_steps, save_limit=config.checkpoint.checkpoints_total_limit,
                   sample_every=config.sample.validation_steps, keep_best=config.guard.keep_best)  # fmt: skip
    job.preview = lambda step: _preview(ready, job, parts, dataset, step)
    if ready.resume:
        loop.resume(job, ready.resume)
        yield Notice(f"Resumed from {ready.resume} after step {job.done}.")
    if config.guard.watch:
        seen = [dataset.instance(index, 0) for index in range(len(dataset.instances))]
        losses = guard.Losses.of(engine, dataset, objective, parts.vae.config.scaling_factor,
                                 {"held-out": held, "seen": seen, "class": held_class}, train.train_batch_size, train.seed)  # fmt: skip
        job.guard = guard.Guard(ready.run, config.guard, losses, _pictures(ready, job, parts, dataset))
        yield from job.guard.begin()
    return job, parts, dataset


def make_engine(config: Config, parts: Parts, policy: Policy, device: torch.device) -> Engine:
    """The engine over `parts`, with adapters and the techniques that change modules applied first, in this order."""
    if config.train.method != "full":
        adapters.inject(parts, config.lora, dora=config.train.method == "dora", text=config.train.train_text_encoder, seed=config.train.seed)
    memory.prepare(parts.unet, policy, device)
    return Engine(parts.family.units(parts, text=config.train.train_text_encoder), policy, device)


def _base_texts(config: Config, parts: Parts, device: torch.device, folder: Path) -> Iterator[Event]:
    """Embeddings by the untouched text encoder, for class images and predictions; {} where there is no prior preservation."""
    if not config.prior.with_prior_preservation:
        return {}
    return (yield from cache.encode_prompts(parts, [data.class_prompt(config), ""], device, folder if config.memory.cache_text else None))


def _prior(config, parts, plan, device, folder, texts, engine) -> Iterator[Event]:
    """(class images, predictions): one of them, or neither."""
    if not config.prior.with_prior_preservation:
        return None, None
    denoiser = engine.as_module(parts.unet) if engine else None
    settings = {"batch_size": config.prior.sample_batch_size or plan.sample_batch, "denoiser": denoiser, "unet_dtype": plan.sample_dtype}
    if config.prior.by == "prediction":
        return None, (yield from prediction.ensure(parts, config, folder, device, texts, **settings))
    place = prior.folder_for(parts, config, folder)
    images = yield from prior.ensure(parts, config, place, device, texts, tile=plan.vae_tile, vae_dtype=plan.vae_dtype, **settings)
    return images, None


def _drawn_prompts(config: Config) -> list[str]:
    return [*config.sample.validation_prompt, config.sample.negative_prompt] if config.sample.num_validation_images else []


def _train(ready: Prepared, job: loop.Job, controls: Controls) -> Iterator[Event]:
    phase = Phase("train", ready.device)
    yield phase.start(job.total, f"{job.total} steps")
    begun = time.perf_counter()
    first = job.done
    yield from loop.run(job, controls)
    seconds = time.perf_counter() - begun
    detail = f"{job.done - first} steps, {job.images / max(seconds, 1e-9):.2f} images a second"
    yield phase.end(detail + (f"; stopped: {job.stopped}" if job.stopped else ""))
    phase = Phase("save", ready.device)
    yield phase.start()
    yield from loop.save(job, "last")
    yield phase.end()


def _preview(ready: Prepared, job: loop.Job, parts: Parts, dataset: Dataset, step: int) -> Iterator[Event]:
    """Pictures of the weights as they are, each prompt with the same seeds at every step."""
    config, plan = ready.config, ready.plan
    per_prompt, prompts = config.sample.num_validation_images, config.sample.validation_prompt
    if not per_prompt or not prompts:
        return
    rows = [(prompt, config.train.seed + i) for prompt in prompts for i in range(per_prompt)]
    texts = dataset.texts or live_texts(job.engine, dataset.tokens, [*prompts, config.sample.negative_prompt])
    with job.engine.parked():
        yield from sample.preview(parts, job.engine.as_module(parts.unet), texts, [p for p, _ in rows], [s for _, s in rows],
                                  ready.run / "samples", step, look=_look(config), device=ready.device,
                                  batch_size=config.sample.batch_size or plan.sample_batch, tile=plan.vae_tile, vae_dtype=plan.vae_dtype)  # fmt: skip


def live_texts(engine: Engine, tokens: dict[str, dict[str, torch.Tensor]], prompts: list[str]) -> dict[str, dict[str, torch.Tensor]]:
    """Embeddings by the text encoder as it is now, where it is being trained."""
    texts = {}
    for prompt in dict.fromkeys(prompts):
        ids = {name: row[None] for name, row in tokens[prompt].items()}
        names = ("text", "pooled") if len(ids) > 1 else ("text",)
        texts[prompt] = {name: engine.forward(ids, name)[0].float().cpu() for name in names}
    return texts


def _pictures(ready: Prepared, job: loop.Job, parts: Parts, dataset: Dataset) -> guard.Pictures | None:
    """The guard's eye, where there is a judge that can look and a class to compare with."""
    config, plan = ready.config, ready.plan
    name = config.guard.judge
    if name == "auto":
        name = "demo" if config.model.name == "demo" else "none"
    if name == "none" or not (config.data.class_name or config.prior.class_prompt):
        return None
    look = replace(_look(config), steps=min(20, config.sample.steps))

    def draw(prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        texts = dataset.texts or live_texts(job.engine, dataset.tokens, [*prompts, look.negative])
        rows, batch = range(len(prompts)), config.sample.batch_size or plan.sample_batch
        with job.engine.parked():
            denoiser = job.engine.as_module(parts.unet)
            latents = [list(sampler.draw(parts, denoiser, texts, prompts[i : i + batch], seeds[i : i + batch], look, ready.device))[-1]
                       for i in rows[::batch]]  # fmt: skip
            return sample.to_pictures(parts, torch.cat(latents), ready.device, plan.vae_tile, plan.vae_dtype)

    photos = [pictures.read(Path(photo.path)).rgb for photo in ready.photos.photos]
    return guard.Pictures(judge.load(name), draw, photos, config.data.instance_prompt, data.class_prompt(config))


def _look(config: Config) -> Look:
    side = config.data.resolution
    return Look((side, side), config.sample.steps, config.sample.guidance_scale, negative=config.sample.negative_prompt,
                zero_terminal_snr=config.train.zero_terminal_snr)  # fmt: skip


def _export(ready: Prepared, engine: Engine, parts: Parts, average: Average | None) -> Iterator[Event]:
    config = ready.config
    weights = average.values if average else engine.master
    yield from export.write(parts, weights, ready.run / "model", config.export.formats, config.export.precision, metadata(config), replace=True)


def metadata(config: Config) -> dict[str, str]:
    keys = ("model.name", "data.instance_prompt", "data.resolution", "prior.with_prior_preservation", "prior.class_prompt",
            "prior.prior_loss_weight", "train.method", "train.max_train_steps", "train.learning_rate", "train.train_text_encoder",
            "train.optimizer", "train.snr_gamma", "train.seed")  # fmt: skip
    return {key: str(config.value(key)) for key in keys}


def _farewell(ready: Prepared, status: str, stopped: str) -> str:
    """Where everything is, and what to type next."""
    run, config = ready.run, ready.config
    if status != "done":
        return f"The run is in {run}.\nGo on with: python -m trainer --config {run}/config.toml --output_dir {run} --resume_from_checkpoint latest"
    lines = [f"model       {run / 'model'}", f"pictures    {run / 'samples'}", f"settings    {run / 'config.toml'}", f"log         {run / 'log.jsonl'}"]
    if stopped:
        lines.insert(0, f"stopped early: {stopped}")
    lines.append(f"draw more:  python -m trainer sample {run} --prompt {config.data.instance_prompt!r}")
    if config.model.name == "demo":
        lines.append("your own:   python -m trainer --preset 12gb --instance_data_dir my_photos --class_name dog")
    return "\n".join(lines)
