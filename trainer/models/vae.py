"""Pictures to latents and back, in tiles where a whole picture would not fit.

Encoding gives the distribution (mean and standard deviation, unscaled), because DreamBooth draws a fresh sample
of it every step. The functions are pure in their tensors, so the planner runs them on meta tensors to learn
what they cost. Tiles overlap by a quarter and are blended; their normalisation sees less than the whole
picture, so they are approximate.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@torch.no_grad()
def encode_pixels(vae: nn.Module, pixels: Tensor, tile: int | None = None) -> tuple[Tensor, Tensor]:
    """(mean, std), each (B, C, H/f, W/f), of `pixels` (B, 3, H, W) in -1..1."""
    with _tiles(vae, tile):
        latent = vae.encode(pixels.to(next(vae.parameters()).dtype)).latent_dist
    return latent.mean, latent.std


@torch.no_grad()
def decode_latents(vae: nn.Module, latents: Tensor, tile: int | None = None) -> Tensor:
    """Pixels (B, 3, H, W) in 0..1, fp32, of scaled latents (B, C, H/f, W/f); one picture at a time."""
    dtype = next(vae.parameters()).dtype
    latents = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
    with _tiles(vae, tile):
        decoded = torch.cat([vae.decode(one.to(dtype)).sample.float() for one in latents.split(1)])
    return (decoded / 2 + 0.5).clamp(0, 1)


@contextmanager
def _tiles(vae: nn.Module, tile: int | None) -> Iterator[None]:
    """diffusers' tiling with tiles of `tile` pixels, restored afterwards. A quarter of a tile must be whole latents."""
    if tile is None:
        yield
        return
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    before = vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size
    tile = max(tile // (4 * factor), 1) * 4 * factor
    vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size = True, tile, tile // factor
    try:
        yield
    finally:
        vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size = before
