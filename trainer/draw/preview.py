"""Previews: fixed prompts with fixed seeds, drawn from the weights as they are, saved with a contact sheet.

The same prompt and seed give comparable pictures at every step, so a row of sheets shows learning, overfitting
and drift. Only the denoiser is on the card while latents are drawn, only the VAE while they become pictures.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from trainer.draw.sampler import Look, Texts, draw
from trainer.draw.sheet import contact_sheet
from trainer.events import Event, Sampled
from trainer.files.whole import whole
from trainer.machine.phase import Phase
from trainer.machine.visit import visiting
from trainer.models.base import Parts
from trainer.models.vae import decode_latents


def preview(
    parts: Parts,
    denoiser: nn.Module,
    texts: Texts,
    prompts: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    step: int,
    *,
    look: Look,
    device: torch.device | str,
    batch_size: int = 1,
    tile: int | None = None,
    vae_dtype: torch.dtype = torch.float32,
    phase_name: str = "sample",
) -> Iterator[Event]:
    """Draw prompts[i] with seeds[i] into `folder`/step-000400/; ends with a Sampled event and returns the pictures.

    `denoiser` is on the card already (`engine.as_module`, or a UNet); `texts` holds every prompt and `look.negative`.
    """
    assert len(prompts) == len(seeds)
    device, place = torch.device(device), Path(folder) / f"step-{step:06d}"
    phase = Phase(phase_name, device)
    yield phase.start(len(prompts) * look.steps, f"{len(prompts)} pictures after step {step}")
    latents = yield from draw_all(parts, denoiser, texts, prompts, seeds, look, device, batch_size, phase)
    pictures = to_pictures(parts, latents, device, tile, vae_dtype)
    place.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, (picture, prompt, seed) in enumerate(zip(pictures, prompts, seeds, strict=True)):
        paths.append(str(place / f"{index:02d}-{slug(prompt)}-{seed}.png"))
        with whole(Path(paths[-1])) as part:
            picture.save(part, "PNG")
    sheet = Path(folder) / f"step-{step:06d}.png"
    contact_sheet(
        pictures,
        [f"{prompt}  ({seed})" for prompt, seed in zip(prompts, seeds, strict=True)],
        sheet,
        title=f"step {step}",
    )
    yield Sampled(step, paths, list(prompts), list(seeds), str(sheet))
    yield phase.end(f"{len(paths)} pictures", str(folder))
    return pictures


def draw_all(
    parts: Parts,
    denoiser: nn.Module,
    texts,
    prompts: Sequence[str],
    seeds: Sequence[int],
    look: Look,
    device: torch.device,
    batch_size: int,
    phase: Phase,
    offset: int = 0,
) -> Iterator[Event]:
    """Latents of all prompts, in batches, with progress in steps of single pictures; returns (N, C, H/f, W/f)."""
    finished, batches = offset, []
    for start in range(0, len(prompts), batch_size):
        rows = slice(start, start + batch_size)
        for result in draw(parts, denoiser, texts, prompts[rows], seeds[rows], look, device):
            if isinstance(result, Tensor):
                batches.append(result.cpu())
            else:
                done = finished + result * len(prompts[rows])
                yield phase.progress(done, f"{done // look.steps} of {phase.total // look.steps} pictures")
        finished += look.steps * len(prompts[rows])
    return torch.cat(batches)


def to_pictures(
    parts: Parts,
    latents: Tensor,
    device: torch.device | str,
    tile: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[Image.Image]:
    """Decode scaled latents with the VAE, which visits the card for it."""
    with visiting(parts.vae, device, dtype) as vae:
        decoded = (decode_latents(vae, one.to(device), tile)[0] for one in latents.split(1))
        rows = [(one * 255).round().byte().permute(1, 2, 0).cpu() for one in decoded]  # a quarter of their fp32 bytes
    return [Image.fromarray(one.numpy()) for one in rows]


def slug(prompt: str, length: int = 40) -> str:
    """A prompt as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:length].strip("-") or "empty"
