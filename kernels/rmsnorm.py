"""RMSNorm of queries and keys, remembering only what it norms.

    y = w x / sqrt(mean(x^2) + eps)                                     (arXiv 1910.07467)

Where torch has no fused operator for it, eager mode keeps x and x / rms in fp32, four times the bytes of x in 16 bits. Here
backward runs forward again and differentiates that, so in fp32 the bits are eager mode's whatever torch does inside. In 16
bits it goes piece by piece, so that the fp32 in between is never there of all tokens at once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

PIECES = 8


class Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return rms_norm(x, weight.shape, weight, eps)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        learns, whole = ctx.needs_input_grad[1], x.dtype == torch.float32
        dx, dweight = x.new_empty(x.shape), torch.zeros_like(weight, dtype=torch.float32) if learns else None
        pieces = ((each,) if whole else each.chunk(PIECES, dim=1) for each in (x, dy, dx))
        for own, mine, out in zip(*pieces, strict=True):
            own, again = own.detach().requires_grad_(), weight.detach().requires_grad_(learns)
            with torch.enable_grad():
                y = rms_norm(own, weight.shape, again, ctx.eps)
            found = torch.autograd.grad(y, (own, again) if learns else (own,), mine)
            out.copy_(found[0])
            if dweight is not None:
                dweight += found[1]
        return dx, None if dweight is None else dweight.to(weight.dtype), None


def rmsnorm(x: Tensor, weight: Tensor, eps: float | None) -> Tensor:
    """x (B, L, ..., d), weight (d,) -> the same shape"""
    if torch.compiler.is_compiling():
        return rms_norm(x, weight.shape, weight, eps)
    return Norm.apply(x, weight, eps)
