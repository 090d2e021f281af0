"""Whether this card's convolutions give numbers in 16 bits, tried before anything is planned with them.

On cards of the GTX 16 series, which have fp16 but no tensor cores, cuDNN's first choice for some convolutions gives NaN
and says nothing (pytorch#58123, #77955); its benchmark mode, which tries all algorithms, usually takes another one. So the
run's own shapes are convolved here, forward and backward: as they are, then in benchmark mode. Where neither gives
finite numbers the card has to compute in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

Way = Literal["plain", "benchmark", "none"]


@dataclass(frozen=True)
class Shape:
    """A 3 x 3 convolution between two hidden values of a denoiser's level."""

    rows: int
    channels: int
    height: int
    width: int


def levels(channels: Sequence[int], rows: int, height: int, width: int) -> Iterator[Shape]:
    """The convolutions of a UNet for latents of height x width: each level halves the sides of the one above."""
    for level, each in enumerate(channels):
        yield Shape(rows, each, max(height >> level, 1), max(width >> level, 1))


def finite(shape: Shape, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether values and both gradients of one convolution are numbers."""
    source, form = torch.Generator(device).manual_seed(0), torch.channels_last

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=source, device=device).to(dtype, memory_format=form)

    hidden = draw(shape.rows, shape.channels, shape.height, shape.width).requires_grad_()
    weight = (draw(shape.channels, shape.channels, 3, 3) / (3 * shape.channels**0.5)).requires_grad_()
    out = torch.nn.functional.conv2d(hidden, weight, padding=1)
    pull = torch.full_like(out, 1 / out[0, 0].numel() ** 0.5)
    return all(bool(x.isfinite().all()) for x in (out, *torch.autograd.grad(out, (hidden, weight), pull)))


@contextmanager
def searching(on: bool = True) -> Iterator[None]:
    """Inside, where it is `on`, cuDNN times its algorithms on each new shape and takes the fastest (its benchmark mode)."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = on or before
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def trial(
    shapes: Sequence[Shape],
    device: torch.device,
    dtype: torch.dtype = torch.float16,
    tried: Callable[[Shape, torch.dtype, torch.device], bool] = finite,
) -> Way:
    """How convolutions of these shapes come out right. Leaves cuDNN's benchmark mode on where only that helps."""
    before = torch.backends.cudnn.benchmark
    ways: tuple[tuple[Way, bool], ...] = (("plain", before), ("benchmark", True))
    for way, benchmark in ways:
        torch.backends.cudnn.benchmark = benchmark
        if all(tried(shape, dtype, device) for shape in shapes):
            return way
    torch.backends.cudnn.benchmark = before
    return "none"
