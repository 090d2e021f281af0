"""The pieces of a run, each made from the Run and what the step before returned.

The order keeps one large model on the card at a time: text encoders, then the denoiser for class images, then the VAE,
and the engine only when they have gone. A denoiser that does not fit the card whole is brought unit by unit from the start.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from trainer import memory, models
from trainer.data import photos as data
from trainer.data.batches import Batches, ClassRows, Draws, PriorRows
from trainer.data.dataset import Dataset, Example
from trainer.data.encode import Encoder
from trainer.data.photos import PhotoSet
from trainer.draw.painter import Painter
from trainer.events import Event, Notice, Stage
from trainer.files.mapped import give_back
from trainer.guard import held, meters
from trainer.guard.guard import Guard
from trainer.machine.phase import Phase
from trainer.machine.team import ALONE, Team
from trainer.models import Parts, learning
from trainer.objective.loss import Objective
from trainer.plan import rehearse
from trainer.policy import Policy
from trainer.prior import contrast, dco, identifier, images, manifest, others, prediction
from trainer.prior.prediction import Amount, PredictedRows, Predictions
from trainer.run import resuming
from trainer.run.prepare import Run
from trainer.run.trained import Trained
from trainer.settings import effect
from trainer.settings.config import Config
from trainer.step.ema import Average
from trainer.step.engine import Engine
from trainer.step.rates import Rates

Keep = PhotoSet | Predictions | None  # what holds training to the class: pictures of it, answers about it, or nothing


@dataclass(frozen=True)
class Cached:
    """What training reads, and beside it what it never sees: examples of the subject and of the class."""

    dataset: Dataset
    unseen: list[Example]
    unseen_class: list[Example]


def load(run: Run) -> Stage[Parts]:
    """The model, as its files have it."""
    config = run.config
    phase = Phase("load", run.device)
    yield phase.start(detail=config.model.name)
    parts = models.load_for(config.model)
    millions = sum(p.numel() for p in parts.denoiser.parameters()) / 1e6
    yield phase.end(f"{parts.family.title}, {millions:.1f} million parameters in the denoiser")
    if config.model.name != "demo" or config.chosen("data.identifier"):  # the small model has never heard of rifles
        yield from identifier.warnings_for(config.data.identifier, config.data.class_name, parts.tokenizers[0])
    return parts


def untouched(run: Run, parts: Parts) -> Stage[Painter]:
    """Who draws with the model as it was loaded. The class's words are encoded before an engine takes the encoders over."""
    config, texts = run.config, {}
    if config.prior.with_prior_preservation:
        encoder = Encoder.of(parts, config, run.plan.drawing, run.device)
        words = others.prompts(config, parts.family.name) if config.prior.others else []
        texts = yield from encoder.prompts([data.class_prompt(config), *words, ""])
    policy = run.plan.policy
    engine = make_engine(config, parts, policy, run.device, run.team) if policy.stream == "all" else None
    return Painter(parts, run.look, run.plan.drawing, run.device, texts, engine)


def class_images(run: Run, painter: Painter) -> Stage[Keep]:
    """What the untouched model draws of the class, or answers about it."""
    config, drawing = run.config, run.plan.drawing
    if not config.prior.with_prior_preservation:
        return None
    # nothing was learned yet: whatever state a streamed engine has already stays where the plan counts it
    batch = config.prior.sample_batch_size or drawing.batch
    painter = replace(painter, drawing=replace(drawing, batch=batch, park=False))
    if config.prior.by == "prediction":
        rows = config.train.max_train_steps * config.train.train_batch_size * config.train.gradient_accumulation_steps
        draws = min(Amount.draws, max(rows, 16))  # a short run cannot use more
        amount = Amount(draws, min(Amount.latents, draws // 4))
        photos = None
        if config.prior.contrast:
            encoder = Encoder.of(painter.parts, config, drawing, run.device)
            photos = yield from run.team.in_turn(contrast.squares(encoder, run.photos, run.look.size))
        return (yield from prediction.ensure(painter, config, run.cache, amount, photos, run.team))
    found = yield from images.ensure(
        painter, config, images.folder_for(painter.parts, config, run.cache), team=run.team
    )
    if config.prior.others:
        found = yield from others.beside(found, painter, config, run.cache, run.team)
    if run.team.leads:
        manifest.record(run.folder, found)
    yield from (Notice(text, level="warning") for text in data.in_both(run.photos, found))
    return found


def cache(run: Run, parts: Parts, keep: Keep) -> Stage[Cached]:
    """Photos, class images and prompts as the encoders have them; where the guard watches, some are kept back."""
    config, encoder = run.config, Encoder.of(parts, run.config, run.plan.drawing, run.device)
    shown = keep if isinstance(keep, PhotoSet) else None
    words = [*drawn_prompts(config), *([run.spared.prompt] if run.spared else [])]
    if isinstance(keep, Predictions):
        words += dict.fromkeys(keep.prompts)
    dataset = yield from encoder.dataset(run.photos, shown, config, words)
    if not config.guard.watch:
        return Cached(dataset, [], [])
    unseen = yield from encoder.images(held.held_views(run.photos, run.spared, run.look.size))
    dataset, unseen_class = held.hold_out_class(dataset)
    return Cached(dataset, unseen, unseen_class)


def drawn_prompts(config: Config) -> list[str]:
    """Every prompt that previews and the guard may draw, and the one they are steered away from."""
    previews = config.sample.validation_prompt if config.sample.num_validation_images else []
    found = [*previews, *meters.prompts(config)]
    return [*found, config.sample.negative_prompt] if found else []


def trained(run: Run, painter: Painter, cached: Cached, keep: Keep) -> Stage[tuple[Trained, Painter]]:
    """What learns, and the painter of what it has learned."""
    config, train, parts, dataset = run.config, run.config.train, painter.parts, cached.dataset
    engine = painter.engine or make_engine(config, parts, run.plan.policy, run.device, run.team)
    yield from _attention(run, parts, dataset)
    drawing = replace(run.plan.drawing, batch=config.sample.batch_size or run.plan.drawing.batch)
    painter = replace(painter, drawing=drawing, texts=dataset.texts or dataset.tokens, engine=engine)
    objective = Objective.of(config, parts.noise(train.zero_terminal_snr, run.look.size))
    photos, classes = yield from _draws(run, dataset, objective, engine, parts.digest)
    batches = Batches(
        dataset,
        objective,
        _prior_rows(keep, dataset, objective, classes),
        batch_size=train.train_batch_size,
        accumulation=train.gradient_accumulation_steps,
        seed=train.seed,
        caption_dropout=train.caption_dropout,
    )
    batches.draws = photos
    made = Trained(
        run.folder,
        engine,
        batches,
        objective,
        Rates.of(train, parts.family.names.denoiser),
        train.max_train_steps,
        {
            "run": uuid.uuid4().hex,
            "policy": run.plan.policy.as_json(),
            "drawing": run.plan.drawing.as_json(),
            "model": parts.digest,
            "made_of": resuming.made_of(run, keep),
        },
        Average(engine.slices(), train.ema_decay) if train.ema and engine.exchange.keeps else None,
    )
    made.searches = run.plan.constants.searches and not config.data.buckets  # shapes that stay the same
    made.guard = _guard(run, made, painter, cached) if config.guard.watch and run.team.leads else None
    torch.manual_seed(train.seed)  # what dropout draws from, whatever a judge drew when it was made
    return made, painter


def make_engine(config: Config, parts: Parts, policy: Policy, device: torch.device, team: Team = ALONE) -> Engine:
    """The engine over `parts`, with adapters and the techniques that change modules applied first, in this order."""
    learning.prepare(parts, config)
    memory.prepare(parts.denoiser, policy, device)
    engine = Engine(parts.family.units(parts, text=config.train.train_text_encoder), policy, device, team)
    give_back()
    return engine


def _attention(run: Run, parts: Parts, dataset: Dataset) -> Iterator[Event]:
    """On a card: the attention kernel that takes this run's shapes, compared with plain mathematics before it trains."""
    policy = run.plan.policy
    if run.device.type != "cuda" or not memory.attention.enabled(policy):
        return
    ready = memory.attention.settle if run.basis.config.memory.attention == "auto" else memory.attention.verify
    kinds = attention_calls(run, parts.latents.factor, dataset)
    yield Notice("\n".join(ready(kinds, policy.math, run.device, policy.attention)))
    memory.allocator.release()


def attention_calls(run: Run, pixels: int, dataset: Dataset) -> list[memory.attention.Shape]:
    """The kinds of attention calls of this card's micro-batches, by falling number of scores. pixels: of a latent's side."""
    empty = models.read_as(run.basis.facts.family.build_meta(run.basis.facts), run.config.model)
    sizes = [(width * pixels, height * pixels) for height, width in dataset.groups]
    return rehearse.attention(empty, run.plan.policy, -(-effect.rows(run.config) // run.team.size), sizes)


def _draws(
    run: Run, dataset: Dataset, objective: Objective, engine: Engine, model: str
) -> Stage[tuple[Draws | None, Draws | None]]:
    """Where a row's loss counts against the base model's: the rows of photos and of class images that there are."""
    if run.config.prior.by != "dco":
        return None, None
    photos, classes = dco.decks(dataset, objective, run.config)
    rows = run.config.train.train_batch_size * (2 if classes else 1)
    photos = yield from dco.known(photos, engine, model, run.cache, rows)
    if classes is not None:
        classes = yield from dco.known(classes, engine, model, run.cache, rows)
    return photos, classes


def _prior_rows(keep: Keep, dataset: Dataset, objective: Objective, draws: Draws | None) -> PriorRows | None:
    """The class half of a step."""
    if isinstance(keep, Predictions):
        return PredictedRows(keep, dataset, objective)
    return ClassRows(dataset, objective, draws) if dataset.class_count else None


def _guard(run: Run, made: Trained, painter: Painter, cached: Cached) -> Guard:
    """Who reads how `made` learns: losses of what training sees and of what it never sees, and pictures."""
    dataset, train = cached.dataset, run.config.train
    seen = [dataset.instance(index, 0) for index in range(len(dataset.instances))]
    probe = meters.Probe(dataset, made.objective, train.train_batch_size, train.seed)
    sets = {"held-out": cached.unseen, "seen": seen, "class": cached.unseen_class}
    losses = meters.Losses.of(made.engine, probe, sets)
    return Guard(run.folder, run.config.guard, losses, meters.Pictures.of(run.config, painter, run.photos))
