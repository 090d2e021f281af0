"""Prior by prediction: hold on to what the untouched model *predicts* for the class, without a single class picture.

    x_0 ~ base model, class prompt, classifier-free guidance     (a short trajectory; latents, never decoded)
    x_t = x_0 noised as the model's noise has it                 (fresh noise and timestep for each draw)
    target = base(x_t, t, class prompt)                          (conditional, no guidance: what training compares with)

The class half of the loss then asks the learner to equal the base model there, as in distillation: where plain
prior preservation regresses onto the noise of 200 pictures, whose irreducible error teaches nothing, this
target is the model's own answer, so its loss starts at zero and only measures drift. All draws are made before
training and cached: no second model on the card.

With `prior.others` a share of the latents is of other prompts, and the base model's answers to those are kept as well: what
is neither subject nor class then stays without a picture of it. With `prior.contrast` (contrast.py) some are the photos themselves.

Where training rescales the schedule to zero terminal SNR, the untouched model is told the timestep of its own schedule
that is as noisy; its last one where there is none.

Saves: class images: fifty short trajectories are drawn instead of two hundred pictures, and none is decoded or encoded.
Costs: a forward pass of the base model for each draw, once; 16-bit targets, on disk and in RAM.
Exact: targets are the base model's answers, rounded to 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from trainer.data.batches import MicroBatch
from trainer.data.dataset import Dataset
from trainer.data.photos import class_prompt
from trainer.draw.painter import Brush, Painter
from trainer.draw.sampler import Look, noise_of
from trainer.events import Notice, Stage
from trainer.files.claim import Claim
from trainer.files.store import Store, checksum, key
from trainer.machine.phase import Phase
from trainer.machine.team import ALONE, Team
from trainer.objective.loss import Objective
from trainer.objective.noise import Noise, golden
from trainer.prior import contrast, others
from trainer.prior.turn import come
from trainer.settings.config import Config

NOISE_SEED = 1 << 32  # draws' noise must not be the noise that began a trajectory


@dataclass(frozen=True)
class Amount:
    """How much is made beforehand.

    draws:   distinct (x_t, t, target) triples; an 800-step run sees half of them
    latents: each is noised many times, and every draw brings new noise and a new target
    steps:   of a trajectory
    """

    draws: int = 1000
    latents: int = 50
    steps: int = 25


@dataclass(frozen=True)
class Draw:
    """One row of a micro-batch. sample, target: (C, H/f, W/f) fp32; timestep: 0-d, counted as the noise counts."""

    sample: Tensor
    timestep: Tensor
    target: Tensor


@dataclass(frozen=True)
class Predictions:
    """latents: (M, C, h, w) fp16, scaled, of as many prompts; timesteps: (K,); targets: (K, C, h, w) fp16. Draw k noises latent
    k mod M."""

    prompts: tuple[str, ...]
    noise: Noise
    seed: int
    latents: Tensor
    timesteps: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def size_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.latents, self.timesteps, self.targets))

    def __getitem__(self, index: int) -> Draw:
        return Draw(self.sample(index, self.timesteps[index]), self.timesteps[index], self.targets[index].float())

    def prompt(self, index: int) -> str:
        """What draw `index` shows."""
        return self.prompts[index % len(self.prompts)]

    def sample(self, index: int, timestep: Tensor) -> Tensor:
        """x_t of draw `index`, (C, h, w) fp32: made again from its seed rather than stored, the same bits each time."""
        latent = self.latents[index % len(self.latents)].float()
        noise = noise_of([NOISE_SEED + self.seed + index], tuple(latent.shape))
        return self.noise.mix(latent[None], noise, timestep[None])[0]


@dataclass(frozen=True)
class PredictedRows:
    """The class half of a micro-batch: rows that bring their own noised latents and targets (a `PriorRows`)."""

    predictions: Predictions
    dataset: Dataset
    objective: Objective

    def take(self, count: int, generator: torch.Generator) -> MicroBatch:
        known = self.predictions
        numbers = [int(torch.randint(len(known), (1,), generator=generator)) for _ in range(count)]
        draws = [known[number] for number in numbers]
        timesteps = torch.stack([draw.timestep for draw in draws])
        values = {"sample": torch.stack([draw.sample for draw in draws]).float(), "timestep": timesteps}
        values |= self.dataset.conditions([known.prompt(number) for number in numbers], [None] * count)
        target = torch.stack([draw.target for draw in draws]).float()
        return MicroBatch(values, target, self.objective.weights(timesteps), None, 0, ("predicted prior",) * count)

    def state(self) -> list[int]:
        return []  # each draw is independent of the ones before

    def restore(self, state: Sequence[int]) -> None:
        pass


def ensure(
    painter: Painter,
    config: Config,
    folder: Path,
    amount: Amount = Amount(),
    photos: Tensor | None = None,
    team: Team = ALONE,
) -> Stage[Predictions]:
    """Predictions made now or found in `folder`; one with fewer draws than wanted is continued, not made again.
    A team makes them together, and has those of one process.

    painter: draws with the untouched model; knows the embeddings of `class_prompt(config)`, of other prompts and of ""
    photos: their scaled latents, (N, C, h, w), where the class's are to be told from them
    """
    draws, latents = amount.draws, amount.latents
    parts, prompts = painter.parts, _prompts(config, painter.parts.family.name, latents)
    side = config.data.resolution or parts.family.resolution
    look = Look((side, side), amount.steps, config.prior.guidance_scale, sampler="ddim")
    noise, seed = parts.noise(config.train.zero_terminal_snr, look.size), config.prior.class_seed or 0
    store = Store(Path(folder) / "predictions")
    facts = {
        "model": parts.digest,
        "predicts": parts.prediction_type,
        "prompt": class_prompt(config),
        "seed": seed,
        "size": side,
        "steps": look.steps,
        "guidance": look.guidance,
        "latents": latents,
        "dtype": str(painter.drawing.denoiser_dtype),
    }
    if config.train.zero_terminal_snr:
        facts["levels"] = "zero terminal SNR"
    if config.prior.others:
        facts["prompts"] = prompts
    of_photos = {} if photos is None else contrast.places(config, prompts, len(photos))
    if photos is not None:
        facts["photos"] = [checksum({"latents": photos}), *of_photos]
    name = key(kind="predictions 1", **facts)
    phase = Phase("class images", painter.device)
    # until they are written: another run's, made with other last bits or fewer of them, would replace these
    with Claim(Path(folder) / "predictions", name) as claim:
        yield from come(claim, phase, "making the same predictions of the base model", team)
        found = team.told(lambda: store.get(name, ("latents", "timesteps", "targets")))
        if store.remade:
            yield Notice("Damaged predictions in the cache are made again.")
        have = 0 if found is None else len(found["timesteps"])
        if have >= draws:
            made = Predictions(
                prompts, noise, seed, found["latents"], found["timesteps"][:draws], found["targets"][:draws]
            )
            yield Notice(f"Prior by prediction: {draws} predictions reused ({made.size_bytes / 2**20:.1f} MiB).")
            return made
        fresh = [i for i in range(latents) if i not in of_photos]
        sampling = len(fresh) * look.steps if found is None else 0
        yield phase.start(sampling + draws - have, f"{draws - have} predictions of the base model, no pictures")
        with replace(painter, look=look).on_card(prompts) as brush:
            if found is None:

                def clean_ones(rows: range) -> Stage[Tensor]:
                    some = [fresh[i] for i in rows]
                    return brush.latents(
                        [prompts[i] for i in some], [seed + i for i in some], phase, rows.start * look.steps
                    )

                clean: dict[int, Tensor] = {} if photos is None else {i: photos[n] for i, n in of_photos.items()}
                if fresh:
                    drawn = yield from _together(team, range(len(fresh)), painter.drawing.batch, clean_ones)
                    clean |= dict(zip(fresh, drawn, strict=True))
                found = {
                    "latents": torch.stack([clean[i] for i in range(latents)]).half(),
                    "timesteps": torch.empty(0, dtype=torch.int64),
                    "targets": torch.empty(0, *clean[0].shape, dtype=torch.float16),
                }
            made = yield from _more(brush, Predictions(prompts, noise, seed, **found), draws, phase, team)
        if team.leads:
            store.put(name, {"latents": made.latents, "timesteps": made.timesteps, "targets": made.targets})
        yield phase.end(f"{draws - have} predictions made, {have} reused: {made.size_bytes / 2**20:.1f} MiB")
        return made


def _prompts(config: Config, family: str, latents: int) -> tuple[str, ...]:
    """Of each latent; those of other prompts lie evenly among those of the class."""
    count = round(latents * config.prior.others)
    words = (
        [word for word, n in others.shares(others.prompts(config, family), count).items() for _ in range(n)]
        if count
        else []
    )
    mixed = [class_prompt(config)] * latents
    for number, word in enumerate(words):
        mixed[number * latents // count] = word
    return tuple(mixed)


def _more(brush: Brush, made: Predictions, draws: int, phase: Phase, team: Team) -> Stage[Predictions]:
    """`made`, continued until there are `draws` of them."""
    timesteps = made.noise.at(golden(draws))

    def answers(rows: range) -> Stage[Tensor]:
        samples = torch.stack([made.sample(i, timesteps[i]) for i in rows])
        known = brush.painter.parts.noise(size=brush.painter.look.size)
        told = known.as_strong_as(made.noise, timesteps[rows.start : rows.stop])
        found = brush.predict(samples, told, [made.prompt(i) for i in rows])
        yield phase.progress(phase.total - (draws - rows.stop))
        return found.half().cpu()

    more = yield from _together(team, range(len(made), draws), brush.painter.drawing.batch, answers)
    return replace(made, timesteps=timesteps, targets=torch.cat([made.targets, more]))


def _together(team: Team, rows: range, batch: int, make: Callable[[range], Stage[Tensor]]) -> Stage[Tensor]:
    """What `make` makes of `rows`, a batch at a time, the batches dealt out to the team: each is that of one process."""
    batches, mine = [rows[start : start + batch] for start in range(0, len(rows), batch)], []
    for some in batches[team.rank :: team.size]:
        made = yield from make(some)
        mine.append(made)
    everybody = team.gather(mine)
    return torch.cat([everybody[number % team.size][number // team.size] for number in range(len(batches))])
