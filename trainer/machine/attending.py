"""Which of torch's attention kernels is the fastest on this card for a run's shape, of those that take no more memory.

Flash, memory-efficient and cuDNN compute the same in another order, and which of them wins depends on card, head size and
version; torch's own order is a guess. All keep for backward what a plan counts, the output and one number a query, but that is
looked at as well: a kernel that keeps more, or needs more at its worst moment, is not chosen, however fast it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from trainer.machine.probe import Meter

GAIN = 1.03  # times as fast as the first one: less is noise
MORE = 1.02  # times its bytes: what is rounded up


@dataclass(frozen=True)
class Timed:
    """seconds: forward and backward; kept: bytes between them beside the inputs; most: bytes at the worst moment."""

    kernel: SDPBackend
    seconds: float
    kept: int
    most: int


def timed(
    size: tuple[int, int, int, int, int],
    dtype: torch.dtype,
    meter: Meter,
    kernels: Sequence[SDPBackend],
    mask: torch.Tensor | None = None,
) -> Iterator[Timed]:
    """Those of `kernels` that take a call of this `size`: batch, heads, queries, keys, head's width. mask: the call's."""
    batch, heads, queries, keys, width = size

    def draw(tokens: int) -> torch.Tensor:
        x = torch.randn(batch, tokens, heads, width, device=meter.device).to(dtype)
        return x.transpose(1, 2).requires_grad_()  # as a denoiser's projections leave them

    q, k, v, pull = draw(queries), draw(keys), draw(keys), draw(queries).detach()

    def forward() -> torch.Tensor:
        return scaled_dot_product_attention(q, k, v, mask)

    def both() -> object:
        return torch.autograd.grad(forward(), (q, k, v), pull)

    for kernel in kernels:
        try:
            with sdpa_kernel(kernel):
                both()
                before, out = meter.held(), forward()
                kept = meter.held() - before
                del out
                yield Timed(kernel, meter.seconds(both), kept, meter.most(both))
        except RuntimeError:
            continue  # torch says so where a kernel does not take a call; that it finds no memory for it is as good


def fastest(found: Sequence[Timed]) -> Timed | None:
    """The one to take instead of the first, which a plan counts with; None where that stays."""
    if not found:
        return None
    first = found[0]
    able = [each for each in found if each.kept <= MORE * first.kept and each.most <= MORE * first.most]
    best = min(able, key=lambda each: each.seconds)
    return best if GAIN * best.seconds < first.seconds else None
