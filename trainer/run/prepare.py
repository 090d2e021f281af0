"""A run understood: settings without blanks, photos, a plan that fits, a device, and where to go on; nothing is loaded yet.

Whatever the person at the keyboard can mend is said here, in seconds, before a weight is read or a file written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from trainer import memory, models
from trainer.data import folders, prompts
from trainer.data import photos as data
from trainer.data.photos import Photo, PhotoSet
from trainer.draw.sampler import Look
from trainer.errors import ConfigError
from trainer.events import Notice
from trainer.guard import held
from trainer.machine.team import Team, join
from trainer.models import Facts, adapters
from trainer.out import checkpoint
from trainer.plan import inputs, planner
from trainer.plan.plan import Plan
from trainer.prior import manifest
from trainer.run import settle
from trainer.run.habits import Habits
from trainer.settings import checks, effect, overlay
from trainer.settings.config import Config
from trainer.step import optim


@dataclass(frozen=True)
class Basis:
    """What a plan is made of, before it settles what nobody had chosen."""

    config: Config
    facts: Facts
    machine: inputs.Machine


@dataclass
class Run:
    """What every stage is handed, whole. Of it change `plan`, which measuring corrects, and where one is found too large,
    once, the settings that follow from it and the checkpoint to go on from; notices are added."""

    config: Config
    photos: PhotoSet
    spared: Photo | None  # a photo that training never sees, where there are enough
    plan: Plan
    device: torch.device
    folder: Path
    team: Team
    resume: Path | None  # the checkpoint to go on from
    basis: Basis
    outgrown: bool = False  # whether this plan is the second one, because the first did not hold
    carried: Path | None = None  # the checkpoint that was written for going over to it
    notices: list[Notice] = field(default_factory=list)

    @property
    def cache(self) -> Path:
        """Where class images, latents and embeddings are kept."""
        return Path(self.config.run.cache_dir)

    @property
    def look(self) -> Look:
        """How its previews are drawn."""
        return Look.of(self.config)

    @property
    def habits(self) -> Habits:
        """What it does on the way."""
        return Habits.of(self.config)


def prepare(config: Config) -> Run:
    """Everything that can be known without loading weights. Raises ConfigError with the fix; writes nothing."""
    config = config.model_copy(deep=True)
    memory.allocator.start()  # before CUDA starts
    _libraries(config)
    settle.subject(config)
    family, facts = models.describe(models.Source.of(config.model))
    models.check_weights(facts, config.model.variant)
    checks.space(config, family.export_gb)
    models.check_text(family, config)
    if config.model.vae:
        models.check_vae(config.model.vae, facts)
    if config.guard.watch:
        checks.judge(config.guard.judge)
    folders.name_class(config)
    mended = list(data.mend(config))
    settle.learning(config, family)
    photos = data.scan(config, family.resolution, facts.divides)
    odd = prompts.check(config, photos, bool(config.prior.with_prior_preservation), windows=family.trains_text)
    photos, spared = held.hold_out(photos) if config.guard.watch else (photos, None)
    settle.schedule(config, family, photos)
    team, device = choose_device(config)
    _share_out(config, team)
    settle.places(config)
    checks.places(config)
    if config.prior.with_prior_preservation and config.prior.by == "images":
        manifest.check_early(config, config.data.resolution)
    folder = Path(team.tell(config.run.output_dir))
    wanted = config.checkpoint.resume_from_checkpoint
    resume = team.told(lambda: checkpoint.locate(folder, wanted)) if wanted else None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        checks.card(config, properties.total_memory, properties.name)
    if resume is not None:
        settle.as_begun(config, checkpoint.says(resume))
    machines = team.gather(inputs.at_hand(config, device, facts))
    basis = Basis(config.model_copy(deep=True), facts, inputs.smallest(machines))
    plan = planner.plan(config, facts, device, basis.machine)
    memory.check(plan.policy)
    obey(config, plan)
    notices = [Notice(text, level="warning") for text in (*mended, *odd, *photos.problems)]
    notices += [Notice(text) for text in photos.advice]
    if differ := inputs.unlike(machines):
        notices.append(Notice(differ))
    if config.checkpoint.resume_from_checkpoint == "latest" and resume is None:
        notices.append(Notice(f"{folder} holds no checkpoint yet: starting from the beginning."))
    if config.model.max_token_length > 75:
        read = "ComfyUI and the WebUIs read all of them, joined as here; diffusers' pipelines read 75 tokens"
        notices.append(Notice(f"Long prompts: {read}."))
    if config.prior.anchor:
        notices.append(Notice(f"{config.prior.anchor:.2%} of what was learned is taken back after each update at the full rate, "
                              "towards the base model; weight decay is off."))  # fmt: skip
    if spared is not None:
        notices.append(Notice(held.said(spared)))
    return Run(config, photos, spared, plan, device, folder, team, resume, basis, notices=notices)


def obey(config: Config, plan: Plan) -> None:
    """What nobody chose is as the plan has it."""
    for key, value in plan.settings.items():
        if "." in key and value is not None and not config.chosen(key) and config.value(key) != value:
            config.settle(key, value, overlay.PLANNER)


def _libraries(config: Config) -> None:
    """What only this run's settings use and nothing else would miss until the model has been loaded."""
    optim.available(config.train.optimizer)
    if config.train.method != "full":
        adapters.available()


def choose_device(config: Config) -> tuple[Team, torch.device]:
    """The processes that train together, and this one's device: CUDA where there is one and nobody asked for the CPU.
    accelerate decides which."""
    if config.run.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--device cuda was asked for, but torch sees no CUDA card.",
            "Run `python -m trainer doctor`, or leave --device out to train on the CPU.",
        )
    team, device = join(config.run.device == "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.train.allow_tf32
    return team, device


def _share_out(config: Config, team: Team) -> None:
    """Every card needs a picture of its own in each step. Raises ConfigError where there are fewer."""
    rows = effect.rows(config) * config.train.gradient_accumulation_steps
    if rows < team.size:
        raise ConfigError(
            f"A step of this run has {rows} picture{'s' * (rows > 1)} for {team.size} cards.",
            f"Use --cards {rows}, or a larger --train_batch_size (or --gradient_accumulation_steps).",
        )
    if config.run.cards != team.size:
        config.settle("run.cards", team.size, "the launcher")
