"""The baseline built in: DreamBooth as a plain user of diffusers writes it, so that a comparison needs no checkout.

fp32 weights, autocast, VAE and text encoder resident and run in every step, one backward over everything, clipping, one
optimizer step over all parameters. Each of these can be taken away by name; that is how the ladder begins.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor

from trainer.models import Parts


@dataclass(frozen=True)
class Recipe:
    """mixed: autocast to bf16 (None: fp32); cached: VAE and text encoders are gone; eight_bit: bitsandbytes AdamW8bit;
    sdpa: PyTorch's fused attention, else the plain matrix products; checkpointing: diffusers' own."""

    mixed: torch.dtype | None = None
    cached: bool = False
    eight_bit: bool = False
    sdpa: bool = False
    checkpointing: bool = False
    lr: float = 2e-6


def stepper(
    made: Parts, recipe: Recipe, pixels: int, pairs: int, device: torch.device
) -> tuple[Callable[[], list[Tensor]], Callable[[], Tensor]]:
    """(what stays on the device between steps, a function that takes one step on `pairs` photos and as many class images
    and returns the loss)."""
    unet = made.denoiser.to(device).train().requires_grad_(True)
    unet.set_attn_processor(AttnProcessor2_0() if recipe.sdpa else AttnProcessor())
    if recipe.checkpointing:
        unet.enable_gradient_checkpointing()
    encoders = [] if recipe.cached else [encoder.to(device) for encoder in made.text_encoders]
    vae = None if recipe.cached else made.vae.to(device)
    keep = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
    scheduler = DDPMScheduler(**{k: v for k, v in made.scheduler_config.items() if k in keep})
    optimizer = _optimizer(unet, recipe)
    rows, latent = 2 * pairs, pixels // made.latents.factor
    generator = torch.Generator(device).manual_seed(0)
    pictures = torch.rand(rows, 3, pixels, pixels, generator=generator, device=device) * 2 - 1
    prompts = ["a photo of sks dog"] * pairs + ["a photo of a dog"] * pairs
    config = made.denoiser.config
    cached_text = torch.randn(rows, 77, config.cross_attention_dim, generator=generator, device=device)
    cached_mean = torch.randn(rows, made.latents.channels, latent, latent, generator=generator, device=device)
    added = None
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        sizes = made.family.extra_values((pixels, pixels), (0, 0), (pixels, pixels), rows)["time_ids"]
        added = {
            "text_embeds": torch.randn(rows, pooled, generator=generator, device=device),
            "time_ids": sizes.to(device),
        }

    def step() -> Tensor:
        autocast = nullcontext() if recipe.mixed is None else torch.autocast(device.type, recipe.mixed)
        with torch.no_grad(), autocast:
            clean = (
                cached_mean if vae is None else vae.encode(pictures).latent_dist.sample() * vae.config.scaling_factor
            )
            text = made.family.encode_text(made, prompts)["text"] if encoders else cached_text
        noise = torch.randn(clean.shape, generator=generator, device=device)
        timesteps = torch.randint(0, 1000, (rows,), generator=generator, device=device)
        with autocast:
            output = unet(
                scheduler.add_noise(clean.float(), noise, timesteps), timesteps, text, added_cond_kwargs=added
            ).sample
            instance, prior = output.float().chunk(2)
            loss = F.mse_loss(instance, noise[:pairs]) + F.mse_loss(prior, noise[pairs:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def stays() -> list[Tensor]:
        modules = [unet, *encoders, *([vae] if vae is not None else [])]
        states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
        return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())] + states

    return stays, step


def _optimizer(unet: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.eight_bit:
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(unet.parameters(), lr=recipe.lr)
    return torch.optim.AdamW(unet.parameters(), lr=recipe.lr)
