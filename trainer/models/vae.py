"""Pictures to latents and back, in tiles where a whole picture would not fit.

Encoding gives the distribution (mean and standard deviation, unscaled), because DreamBooth draws a fresh sample
of it every step. The functions are pure in their tensors, so the planner runs them on meta tensors to learn
what they cost. Tiles overlap by a quarter and are blended; their normalisation sees less than the whole
picture, so they are approximate.

What a denoiser knows are scaled latents, (raw - shift) * scale, and the VAE itself says how: by two numbers in its
configuration, or, as FLUX.2's, by the running mean and variance of each channel, after two by two latent pixels have become
one of four times the channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


@dataclass(frozen=True)
class Latents:
    """The kind of latents that a VAE makes.

    factor:   pixels along the side of one latent pixel, packed; channels: of the denoiser's sample
    scale, shift: numbers, or (C, 1, 1) tensors
    packed:   whether two by two pixels of the VAE's own latents are one here
    """

    factor: int = 8
    channels: int = 4
    scale: float | Tensor = 1.0
    shift: float | Tensor = 0.0
    packed: bool = False

    def scaled(self, raw: Tensor) -> Tensor:
        """What the denoiser knows, from what `encode_pixels` gave; both (..., C, H/f, W/f)."""
        return (raw - self.shift) * self.scale if isinstance(self.shift, Tensor) or self.shift else raw * self.scale

    def raw(self, scaled: Tensor) -> Tensor:
        """The inverse."""
        scale, shift = (x.to(scaled.device) if isinstance(x, Tensor) else x for x in (self.scale, self.shift))
        return scaled / scale + shift


def latents_of(vae: nn.Module) -> Latents:
    """The kind of latents that `vae` makes."""
    config, factor = vae.config, factor_of(vae.config)
    if not hasattr(vae, "bn"):
        return Latents(factor, config.latent_channels, config.scaling_factor, config.get("shift_factor") or 0.0)
    mean, variance = (each.float()[:, None, None] for each in (vae.bn.running_mean, vae.bn.running_var))
    scale = 1 / (variance + config.batch_norm_eps).sqrt()
    return Latents(factor, 4 * config.latent_channels, scale, mean, packed=True)


def factor_of(config: Mapping[str, Any]) -> int:
    """Pixels along the side of a latent pixel of a VAE with this configuration; where it does not say, the public models'."""
    return _halved(config) * (_patch(config) or 1)


def worked_on(config: Mapping[str, Any]) -> int:
    """Latent pixels along the side of what a denoiser works on as one: a transformer's patch, or a UNet's deepest pixel."""
    return _patch(config) or _halved(config)


def _halved(config: Mapping[str, Any]) -> int:
    """By how much a part's levels divide the sides of what goes through it; where it names none, as the public models'."""
    return 2 ** (len(config.get("block_out_channels", [0] * 4)) - 1)


def _patch(config: Mapping[str, Any]) -> int | None:
    """Pixels along the side of a patch that a part takes as one, where it has patches."""
    patch = config.get("patch_size", config.get("all_patch_size"))
    return patch if patch is None or isinstance(patch, int) else patch[0]


@torch.no_grad()
def encode_pixels(vae: nn.Module, pixels: Tensor, tile: int | None = None) -> tuple[Tensor, Tensor]:
    """(mean, std), each (B, C, H/f, W/f), of `pixels` (B, 3, H, W) in -1..1."""
    with _tiles(vae, tile):
        latent = vae.encode(pixels.to(next(vae.parameters()).dtype)).latent_dist
    if latents_of(vae).packed:
        return pixel_unshuffle(latent.mean, 2), pixel_unshuffle(latent.std, 2)
    return latent.mean, latent.std


@torch.no_grad()
def decode_latents(vae: nn.Module, latents: Tensor, tile: int | None = None) -> Tensor:
    """Pixels (B, 3, H, W) in 0..1, fp32, of scaled latents (B, C, H/f, W/f); one picture at a time."""
    dtype = next(vae.parameters()).dtype
    kind = latents_of(vae)
    latents = kind.raw(latents)
    if kind.packed:
        latents = pixel_shuffle(latents, 2)
    with _tiles(vae, tile):
        decoded = torch.cat([vae.decode(one.to(dtype)).sample.float() for one in latents.split(1)])
    return (decoded / 2 + 0.5).clamp(0, 1)


@contextmanager
def _tiles(vae: nn.Module, tile: int | None) -> Iterator[None]:
    """diffusers' tiling with tiles of `tile` pixels, restored afterwards. A quarter of a tile must be whole latents."""
    if tile is None:
        yield
        return
    factor = _halved(vae.config)
    before = vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size
    tile = max(tile // (4 * factor), 1) * 4 * factor
    vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size = True, tile, tile // factor
    try:
        yield
    finally:
        vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size = before
