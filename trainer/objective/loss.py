"""The training objective: how errors are weighed, and the two halves of DreamBooth's loss.

    e = model(x_t, t) - target, both as the model's noise has them (noise.py)
    loss = mean_instance(w e^2) + prior_loss_weight * mean_class(w e^2)     (DreamBooth, arXiv 2208.12242)

Where the base model's loss of each row is known, the row's own e^2 becomes (Direct Consistency Optimization, arXiv 2402.12004)

    2 T log(1 + exp((w e^2 - w e_base^2) / T))            T: prior.temperature

whose gradient is that of the plain loss while a row is as well known as to the base model, and fades as it is known better
by a few T: what is learned already pulls at nothing any more. (The paper's loss over its beta / 2, with T = 1 / beta.)

Each half is averaged on its own, with the weights of its own timesteps. Training, the probe and the planner's rehearsal
take one and the same loss of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus

from trainer.objective.noise import Noise
from trainer.settings.config import Config


@dataclass(frozen=True)
class Noised:
    """One noised micro-batch. sample, target: (B, C, H/8, W/8) fp32; timesteps, weights: (B,)."""

    sample: Tensor
    timesteps: Tensor
    target: Tensor
    weights: Tensor


class Rows(Protocol):
    """What the loss asks of a micro-batch. target: (B, C, H/8, W/8); weights: (B,); mask: (B, 1, H/8, W/8) or None;
    counts: photos and class images of the whole micro-batch where these rows are one card's share of it;
    reference: (B,) the base model's weighted errors on these very rows, where they count."""

    @property
    def target(self) -> Tensor: ...

    @property
    def weights(self) -> Tensor: ...

    @property
    def mask(self) -> Tensor | None: ...

    @property
    def instances(self) -> int: ...

    @property
    def counts(self) -> tuple[int, int] | None: ...

    @property
    def reference(self) -> Tensor | None: ...


@dataclass(frozen=True)
class Objective:
    """`noise`: the model's; the rest are settings of [train] and [prior]."""

    noise: Noise
    snr_gamma: float | None = None
    offset_noise: float = 0.0
    prior_loss_weight: float = 1.0
    temperature: float = 1e-3
    timesteps: str = "uniform"

    @classmethod
    def of(cls, config: Config, noise: Noise) -> Objective:
        train, prior = config.train, config.prior
        weight, temperature = prior.prior_loss_weight, prior.temperature
        return cls(noise, train.snr_gamma, train.offset_noise, weight, temperature, train.timesteps)

    def draw(self, latents: Tensor, generator: torch.Generator, photos: bool = False) -> Noised:
        """Draw noise and timesteps for `latents` (B, C, H/8, W/8), on the generator's device (the CPU, so that a run is
        the same on every card). Those of `photos` may lean to one end: the noisier, or the cleaner, of two draws."""
        noise = torch.randn(latents.shape, generator=generator)
        if self.offset_noise:
            noise = noise + self.offset_noise * torch.randn(*latents.shape[:2], 1, 1, generator=generator)
        timesteps = self.noise.draw(len(latents), generator)
        if photos and self.timesteps != "uniform":
            again = self.noise.draw(len(latents), generator)
            timesteps = (torch.maximum if self.timesteps == "noisy" else torch.minimum)(timesteps, again)
        return self.noised(latents, noise, timesteps)

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Noised:
        """The same with given noise and timesteps."""
        sample, target = self.noise.mix(latents, noise, timesteps), self.noise.target(latents, noise, timesteps)
        return Noised(sample, timesteps, target, self.weights(timesteps))

    def weights(self, timesteps: Tensor) -> Tensor:
        """Loss weight of each timestep, (B,) fp32."""
        return self.noise.weights(timesteps, self.snr_gamma)

    def of_step(self, micro: Sequence[Rows], accumulation: int) -> StepLoss:
        """The loss of a step over its micro-batches, as the engine asks for it. `accumulation`: draws in the step; photos
        and class images of one draw may be two micro-batches."""
        given = [
            Given(rows.target, rows.weights, rows.mask, rows.instances, rows.counts, rows.reference) for rows in micro
        ]
        return StepLoss(self, given, accumulation)

    def errors(self, prediction: Tensor, target: Tensor, weights: Tensor, mask: Tensor | None = None) -> Tensor:
        """The weighted error of each row, (B,) fp32. `mask`: (B, 1, H/8, W/8) weights of mean one per picture, or None."""
        error = (prediction.float() - target.float()) ** 2
        if mask is not None:
            error = error * mask
        return error.mean(dim=(1, 2, 3)) * weights

    def consistent(self, each: Tensor, reference: Tensor) -> Tensor:
        """Direct Consistency Optimization of rows' errors, (B,) fp32, given the base model's on the same rows."""
        return 2 * self.temperature * softplus((each - reference) / self.temperature)

    def halves(
        self, each: Tensor, instances: int, counts: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(total, instance, class) losses, fp32 scalars. The first `instances` rows are photos, the rest class images;
        a half without rows adds nothing to the total and is nan itself.

        `counts`: the rows are a share of so many photos and class images on all cards, and so are the losses: their
        sums over the cards are those of all rows.
        """
        photos, others = counts or (instances, len(each) - instances)
        if counts is None:
            instance, prior = each[:instances].mean(), each[instances:].mean()  # the mean of no row is nan
        else:
            instance, prior = each[:instances].sum() / photos, each[instances:].sum() / others
        if not others:
            return instance, instance, prior
        if not photos:
            return self.prior_loss_weight * prior, instance, prior
        return instance + self.prior_loss_weight * prior, instance, prior


@dataclass(frozen=True)
class Given:
    """`Rows` and nothing else."""

    target: Tensor
    weights: Tensor
    mask: Tensor | None
    instances: int
    counts: tuple[int, int] | None
    reference: Tensor | None = None


@dataclass(frozen=True)
class StepLoss:
    """loss(prediction, index) is (its share of the total, instance loss, class loss) of one micro-batch. Its tensors may be
    exchanged for others of the same shapes, as a recorded step does (step/replay.py)."""

    objective: Objective
    micro: Sequence[Given]
    accumulation: int

    def __call__(self, prediction: Tensor, index: int) -> tuple[Tensor, ...]:
        rows = self.micro[index]
        each = self.objective.errors(prediction, rows.target, rows.weights, rows.mask)
        if rows.reference is not None:
            each = self.objective.consistent(each, rows.reference)
        total, instance, prior = self.objective.halves(each, rows.instances, rows.counts)
        return total / self.accumulation, instance, prior

    @property
    def kind(self) -> tuple:
        """Whatever of it is no tensor."""
        rows = tuple((r.instances, r.counts, r.mask is None, r.reference is None) for r in self.micro)
        return rows, self.accumulation, self.objective.prior_loss_weight, self.objective.temperature

    @property
    def tensors(self) -> list[Tensor]:
        return [
            tensor
            for rows in self.micro
            for tensor in (rows.target, rows.weights, rows.mask, rows.reference)
            if tensor is not None
        ]

    def over(self, tensors: Sequence[Tensor]) -> StepLoss:
        rest = iter(tensors)
        micro = [
            replace(
                each,
                target=next(rest),
                weights=next(rest),
                mask=None if each.mask is None else next(rest),
                reference=None if each.reference is None else next(rest),
            )
            for each in self.micro
        ]
        return replace(self, micro=micro)
