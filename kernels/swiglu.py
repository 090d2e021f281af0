"""SwiGLU, the gate of FLUX.2's MLPs, remembering only the projection it starts from.

    [g, h] = x      y = silu(g) h      silu(g) = g / (1 + exp(-g))       (arXiv 2002.05202)

Eager mode keeps silu(g) beside x, and adds the gradients of g and of h up in two tensors of x's size that are half zeros. Here
both halves of one are written. They are torch's own operators in eager mode's order, so the bits are the same; no Triton.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

PIECES = 8


def reference(x: Tensor) -> Tensor:
    """x (..., 2 d) -> (..., d)"""
    g, h = x.chunk(2, -1)
    return silu(g) * h


def reference_backward(dy: Tensor, x: Tensor) -> Tensor:
    """Piece by piece, so that what lies in between is never there of all tokens at once."""
    dx = x.new_empty(x.shape)
    for own, mine, out in zip(*(each.chunk(PIECES, -2) for each in (x, dy, dx)), strict=True):
        (g, h), (dg, dh) = own.chunk(2, -1), out.chunk(2, -1)
        torch.mul(mine, silu(g), out=dh)
        torch.ops.aten.silu_backward.grad_input(mine * h, g, grad_input=dg)
    return dx


class Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return reference(x)

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        return reference_backward(dy, *ctx.saved_tensors)


def swiglu(x: Tensor) -> Tensor:
    """silu(g) h of x = [g, h]; x  # (..., 2 d) -> (..., d)"""
    return reference(x) if torch.compiler.is_compiling() else Gate.apply(x)
