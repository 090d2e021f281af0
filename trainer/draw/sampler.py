"""Drawing pictures with any denoiser: prompts and seeds in, latents out, a few lines around a diffusers scheduler.

    e = e(x, t, negative) + guidance (e(x, t, prompt) - e(x, t, negative))        (arXiv 2207.12598)

Each picture's noise comes from its own CPU generator, so pictures do not depend on the batch they are drawn in
or on the card. The loop needs only the denoiser and cached embeddings; text encoders and VAE may be anywhere,
or nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.models.base import Parts
from trainer.models.rows import stacked
from trainer.settings.config import Config
from trainer.step.standin import StandIn
from trainer.units import EXACT

# prompt -> the family's text values, such as {"text": (L, C), "pooled": (P,)}
Texts = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Look:
    """How pictures are drawn. size: (width, height) in pixels."""

    size: tuple[int, int]
    steps: int = 30
    guidance: float = 7.5
    sampler: str = "dpm++"
    negative: str = ""
    zero_terminal_snr: bool = False

    @classmethod
    def of(cls, config: Config) -> Look:
        """How a run's previews are drawn; its resolution is settled."""
        side, sample = config.data.resolution, config.sample
        return cls(
            (side, side),
            sample.steps,
            sample.guidance_scale,
            negative=sample.negative_prompt,
            zero_terminal_snr=config.train.zero_terminal_snr,
        )

    @property
    def guided(self) -> bool:
        """Whether the negative prompt is predicted, too."""
        return self.guidance > 1


def noise_of(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """(B, C, H/f, W/f) standard normal, row i from seeds[i] alone."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def conditions(parts: Parts, texts: Texts, prompts: Sequence[str], look: Look, device) -> dict[str, Tensor]:
    """Embeddings of `prompts` and, for SDXL, sizes, on `device`; the empty prompt as the family's own pipeline has it."""
    zeroed = [p == "" and parts.family.empty_is_zeros for p in prompts]
    rows = stacked(
        [
            {name: value * (not zero) for name, value in texts[p].items()}
            for p, zero in zip(prompts, zeroed, strict=True)
        ]
    )
    size = (look.size[1], look.size[0])
    rows |= parts.family.extra_values(size, (0, 0), size, len(prompts))
    return {name: tensor.to(device) for name, tensor in rows.items()}


def predict(
    parts: Parts, denoiser: nn.Module, sample: Tensor, timestep: Tensor, values: Mapping[str, Tensor]
) -> Tensor:
    """The denoiser's output, fp32, in whatever precision its weights have."""
    dtype = denoiser.dtype
    values = {
        name: tensor.to(dtype) if tensor.is_floating_point() and name not in EXACT else tensor
        for name, tensor in values.items()
    }
    if isinstance(denoiser, StandIn):
        return denoiser.told(values | {"sample": sample.to(dtype), "timestep": timestep}).float()
    return parts.family.call(denoiser, sample.to(dtype), timestep, values).float()


@torch.no_grad()
def draw(
    parts: Parts,
    denoiser: nn.Module,
    texts: Texts,
    prompts: Sequence[str],
    seeds: Sequence[int],
    look: Look,
    device: torch.device | str,
) -> Iterator[int | Tensor]:
    """Draw one batch. Yields the count of steps after each, at last the scaled latents (B, C, H/f, W/f)."""
    latent = parts.latents
    guided = look.guided
    values = conditions(parts, texts, [*([look.negative] * len(prompts) if guided else []), *prompts], look, device)
    process = parts.noise(look.zero_terminal_snr, look.size)
    scheduler = process.sampler(look.steps, look.sampler)
    sides = (look.size[1] // latent.factor, look.size[0] // latent.factor)
    latents = noise_of(seeds, (latent.channels, *sides)).to(device)
    on_card = scheduler.timesteps.to(device)  # once: a copy in each step would wait for the step before
    for done, timestep in enumerate(scheduler.timesteps, 1):
        rows = torch.cat([latents] * 2) if guided else latents
        output = predict(parts, denoiser, rows, on_card[done - 1].expand(len(rows)), values)
        if guided:
            negative, positive = output.chunk(2)
            output = rescaled(negative + look.guidance * (positive - negative), positive, process.guidance_rescale)
        latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
        yield done
    yield latents


def rescaled(guided: Tensor, positive: Tensor, share: float) -> Tensor:
    """`guided` with `share` of its contrast replaced by that of the unguided prediction, picture by picture."""
    if not share:
        return guided
    wanted, found = (each.std(dim=(1, 2, 3), keepdim=True) for each in (positive, guided))
    return guided * (1 - share + share * wanted / found)
