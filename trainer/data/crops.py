"""What is cut out of a photo: a box, a size, perhaps mirrored. A `View` names one such cut so exactly that it can
be a cache key.

A photo has one view for a plain centre crop, several for random crops and jitter, twice as many with flips; all
follow from the seed and the photo's own bytes, so a photo that joins the folder changes no view of the others.
SDXL is told what was cut (arXiv 2307.01952, section 2.2), so a view also knows its place in the resized photo.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

Size = tuple[int, int]  # (width, height), as Pillow has it


@dataclass(frozen=True)
class View:
    """One cached variant of a photo."""

    photo: Size
    box: tuple[float, float, float, float]  # left, upper, right, lower in photo pixels
    size: Size  # pixels after resizing: multiples of what the model divides by
    flip: bool = False
    color: tuple[float, float, float] = (1.0, 1.0, 1.0)  # brightness, contrast, saturation factors

    @property
    def original_size(self) -> tuple[int, int]:
        """(height, width) of the photo, as SDXL's conditioning has it."""
        return self.photo[1], self.photo[0]

    @property
    def target_size(self) -> tuple[int, int]:
        return self.size[1], self.size[0]

    @property
    def crop_top_left(self) -> tuple[int, int]:
        """(top, left) of the cut in the resized photo; after mirroring, left is counted from the mirrored edge."""
        left, upper, right, lower = self.box
        scale_x, scale_y = self.size[0] / (right - left), self.size[1] / (lower - upper)
        edge = self.photo[0] - right if self.flip else left
        return round(upper * scale_y), round(edge * scale_x)


def center(photo: Size, size: Size) -> View:
    """The largest box of `size`'s shape in the middle of the photo."""
    return place(photo, size, 0.5, 0.5)


def place(photo: Size, size: Size, x: float, y: float, zoom: float = 1.0) -> View:
    """The largest box of `size`'s shape divided by `zoom` >= 1; `x`, `y` in 0..1 say where in the room that is left."""
    scale = min(photo[0] / size[0], photo[1] / size[1]) / zoom
    width, height = min(size[0] * scale, photo[0]), min(size[1] * scale, photo[1])
    left, upper = x * (photo[0] - width), y * (photo[1] - height)
    return View(photo, (round(left, 3), round(upper, 3), round(left + width, 3), round(upper + height, 3)), size)


def bucket_sizes(resolution: int, step: int) -> list[Size]:
    """Sizes in multiples of `step` with no more pixels than `resolution` squared and at most twice as long as wide."""
    sizes = set()
    for width in range(step, 2 * resolution + 1, step):
        height = int(resolution * resolution / width) // step * step
        if height and max(width, height) <= 2 * min(width, height):
            sizes |= {(width, height), (height, width)}
    return sorted(sizes)


def bucket_step(resolution: int, divides: int) -> int:
    """Sides of buckets are multiples of this: 64 px as the public models were trained; what small models divide by."""
    return 64 if resolution >= 512 else min(64, divides)


def bucket(photo: Size, resolution: int, step: int) -> Size:
    """The bucket whose shape is nearest the photo's; of equally near ones, the largest."""
    shape = math.log(photo[0] / photo[1])
    return min(
        bucket_sizes(resolution, step),
        key=lambda size: (round(abs(math.log(size[0] / size[1]) - shape), 6), -size[0] * size[1]),
    )


def kept_share(photo: Size, view: View) -> float:
    """Share of the photo's pixels that are inside the box."""
    left, upper, right, lower = view.box
    return (right - left) * (lower - upper) / (photo[0] * photo[1])


def cut(rgb: Image.Image, view: View) -> Image.Image:
    """The view as a picture: cut and resized in one filter (Lanczos), mirrored, colours changed."""
    cut_out = rgb.resize(view.size, Image.Resampling.LANCZOS, box=view.box)
    return change_colors(ImageOps.mirror(cut_out) if view.flip else cut_out, view.color)


def change_colors(picture: Image.Image, color: tuple[float, float, float]) -> Image.Image:
    """Brightness, contrast and saturation multiplied by `color`, in this order; factors of 1 change nothing."""
    for enhance, factor in zip(
        (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), color, strict=True
    ):
        if factor != 1:
            picture = enhance(picture).enhance(factor)
    return picture


def cut_mask(mask: Image.Image, view: View, latent_size: Size) -> Tensor:
    """Loss weights of mean one, (1, h, w) fp32: area averages, so a latent that is half subject weighs half. A crop that
    shows nothing of the subject weighs nothing."""
    small = mask.convert("L").resize(latent_size, Image.Resampling.BOX, box=view.box)
    weights = torch.from_numpy(np.asarray(ImageOps.mirror(small) if view.flip else small, dtype=np.float32))[None]
    mean = weights.mean()
    return weights / mean if mean > 0 else weights


def pixels(picture: Image.Image) -> Tensor:
    """(3, H, W) fp32 in -1..1, what a VAE reads."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1
