"""Drawing with the shipped folder through diffusers alone, and sheets of pictures to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw


def pipeline(folder: Path, device: str = "cpu"):
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, torch_dtype=torch.float32).to(device)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pictures(
    pipe, prompts: Sequence[str], steps: int = 25, guidance: float = 3.0, seed: int = 0, batch: int = 32
) -> list[Image.Image]:
    """One picture a prompt; picture i always starts from the noise of seed + i."""
    made = []
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        noise = [torch.Generator("cpu").manual_seed(seed + start + i) for i in range(len(part))]
        made += pipe(part, num_inference_steps=steps, guidance_scale=guidance, generator=noise).images
    return made


def sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], side: int = 64) -> Image.Image:
    """A labelled row of pictures per entry."""
    width, left = max(len(row) for _, row in rows), 120
    canvas = Image.new("RGB", (left + width * side, len(rows) * side), "white")
    pen = ImageDraw.Draw(canvas)
    for y, (label, row) in enumerate(rows):
        for line, words in enumerate(_wrap(label)):
            pen.text((4, y * side + 12 + 12 * line), words, fill="black")
        for x, picture in enumerate(row):
            canvas.paste(picture.resize((side, side)), (left + x * side, y * side))
    return canvas


def _wrap(label: str, width: int = 19) -> list[str]:
    lines = [""]
    for word in label.split():
        if len(lines[-1]) + len(word) + 1 > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
