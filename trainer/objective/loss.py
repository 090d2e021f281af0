"""The training objective in the papers' symbols: what is predicted, how it is noised, how errors are weighed.

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps          (DDPM, arXiv 2006.11239)
    target = eps                                            epsilon
    target = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0        v (arXiv 2202.00512)
    w(t) = min(SNR, gamma) / SNR  (epsilon),  min(SNR, gamma) / (SNR + 1)  (v)       (min-SNR, arXiv 2303.09556)
    loss = mean_instance(w e^2) + prior_loss_weight * mean_class(w e^2)     (DreamBooth, arXiv 2208.12242)

Each half is averaged on its own, with the weights of its own timesteps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Noised:
    """One noised micro-batch. sample, target: (B, C, H/8, W/8) fp32; timesteps: (B,) int64; weights: (B,) fp32."""

    sample: Tensor
    timesteps: Tensor
    target: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Objective:
    """`abar`: (T,) fp64 cumulative products of 1 - beta; `prediction`: "epsilon" or "v_prediction"."""

    abar: Tensor
    prediction: str = "epsilon"
    snr_gamma: float | None = None
    offset_noise: float = 0.0
    prior_loss_weight: float = 1.0

    def noise(self, latents: Tensor, generator: torch.Generator) -> Noised:
        """Draw noise and timesteps for `latents` (B, C, H/8, W/8), on the generator's device (the CPU, so that a run is
        the same on every card)."""
        noise = torch.randn(latents.shape, generator=generator)
        if self.offset_noise:
            noise = noise + self.offset_noise * torch.randn(*latents.shape[:2], 1, 1, generator=generator)
        timesteps = torch.randint(len(self.abar), (len(latents),), generator=generator)
        return self.noised(latents, noise, timesteps)

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Noised:
        """The same with given noise and timesteps."""
        abar = self.abar[timesteps].view(-1, 1, 1, 1)
        signal, sigma = abar.sqrt().float(), (1 - abar).sqrt().float()
        sample = signal * latents + sigma * noise
        target = noise if self.prediction == "epsilon" else signal * noise - sigma * latents
        return Noised(sample, timesteps, target, self.weights(timesteps))

    def weights(self, timesteps: Tensor) -> Tensor:
        """Loss weight of each timestep, (B,) fp32. At zero SNR the epsilon weight is its limit, 1."""
        if self.snr_gamma is None:
            return torch.ones(len(timesteps))
        abar = self.abar[timesteps]
        snr = abar / (1 - abar)
        capped = snr.clamp(max=self.snr_gamma)
        if self.prediction == "v_prediction":
            return (capped / (snr + 1)).float()
        return torch.where(snr > 0, capped / snr.clamp(min=torch.finfo(snr.dtype).tiny), 1.0).float()

    def loss(
        self, prediction: Tensor, target: Tensor, weights: Tensor, instances: int, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(total, instance, class) losses, fp32 scalars. The first `instances` rows are photos, the rest class images;
        a half without rows adds nothing to the total and is nan itself.

        `mask`: (B, 1, H/8, W/8) weights of mean one per picture, or None.
        """
        error = (prediction.float() - target.float()) ** 2
        if mask is not None:
            error = error * mask
        each = error.mean(dim=(1, 2, 3)) * weights
        instance, prior = each[:instances].mean(), each[instances:].mean()  # the mean of no row is nan
        if instances == len(each):
            return instance, instance, prior
        if instances == 0:
            return self.prior_loss_weight * prior, instance, prior
        return instance + self.prior_loss_weight * prior, instance, prior
