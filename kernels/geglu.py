"""GEGLU, the gate of Stable Diffusion's feed-forward layers, remembering only the projection it starts from.

    [h, g] = x      y = h gelu(g)      gelu(g) = g (1 + erf(g / sqrt 2)) / 2

Eager mode keeps h, g and gelu(g) beside y; gelu is cheap, so backward computes it again. The exact erf, not the tanh
approximation of language models: that is what the models were trained with.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import choice
from .eager import runs_at_once

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton, no CUDA path: everything below works by `reference`
    triton = None


def reference(x: Tensor) -> Tensor:
    """x (..., 2 d) -> (..., d)"""
    h, g = x.float().chunk(2, -1)
    return (h * torch.nn.functional.gelu(g)).to(x.dtype)


def reference_backward(dy: Tensor, x: Tensor) -> Tensor:
    dy, (h, g) = dy.float(), x.float().chunk(2, -1)
    dx = torch.empty_like(x)
    dh, dg = dx.chunk(2, -1)
    dh.copy_(dy * torch.nn.functional.gelu(g))
    dg.copy_(torch.ops.aten.gelu_backward(dy * h, g))
    return dx


if triton is not None:

    @triton.jit
    def _halves(x, rows, width, BR: tl.constexpr, BW: tl.constexpr):
        """-> row offsets, columns, mask, h and g of a tile in fp32"""
        r = (tl.program_id(0) * BR + tl.arange(0, BR)).to(tl.int64)[:, None]
        c = (tl.program_id(1) * BW + tl.arange(0, BW))[None, :]
        mask = (r < rows) & (c < width)
        h = tl.load(x + r * 2 * width + c, mask=mask, other=0.0).to(tl.float32)
        g = tl.load(x + r * 2 * width + width + c, mask=mask, other=0.0).to(tl.float32)
        return r, c, mask, h, g

    @triton.jit
    def _forward(x, y, rows, width, BR: tl.constexpr, BW: tl.constexpr):
        r, c, mask, h, g = _halves(x, rows, width, BR, BW)
        tl.store(y + r * width + c, h * g * 0.5 * (1.0 + tl.erf(g * 0.7071067811865476)), mask=mask)

    @triton.jit
    def _backward(dy, x, dx, rows, width, BR: tl.constexpr, BW: tl.constexpr):
        r, c, mask, h, g = _halves(x, rows, width, BR, BW)
        grad = tl.load(dy + r * width + c, mask=mask, other=0.0).to(tl.float32)
        phi = 0.5 * (1.0 + tl.erf(g * 0.7071067811865476))
        slope = phi + g * 0.3989422804014327 * tl.exp(-0.5 * g * g)
        tl.store(dx + r * 2 * width + c, grad * g * phi, mask=mask)
        tl.store(dx + r * 2 * width + width + c, grad * h * slope, mask=mask)


def _grid(rows: int, width: int) -> tuple[tuple[int, int], dict[str, int]]:
    wide = min(1024, triton.next_power_of_2(width))
    tall = max(1, 1024 // wide)
    return (triton.cdiv(rows, tall), triton.cdiv(width, wide)), {"BR": tall, "BW": wide}


@choice.on_its_card
def launch(x: Tensor) -> Tensor:
    x, width = x.contiguous(), x.shape[-1] // 2
    y = x.new_empty(*x.shape[:-1], width)
    grid, tile = _grid(y.numel() // width, width)
    _forward[grid](x, y, y.numel() // width, width, **tile)
    return y


@choice.on_its_card
def launch_backward(dy: Tensor, x: Tensor) -> Tensor:
    x, dy, width = x.contiguous(), dy.contiguous(), x.shape[-1] // 2
    dx = torch.empty_like(x)
    grid, tile = _grid(dy.numel() // width, width)
    _backward[grid](dy, x, dx, dy.numel() // width, width, **tile)
    return dx


def _run(x: Tensor) -> Tensor:
    return (launch if choice.takes(x) else reference)(x)


def _run_backward(dy: Tensor, x: Tensor) -> Tensor:
    return (launch_backward if choice.takes(x) else reference_backward)(dy, x)


@torch.library.custom_op("trainer::geglu", mutates_args=())
def _op(x: Tensor) -> Tensor:
    return _run(x)


@_op.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


@torch.library.custom_op("trainer::geglu_backward", mutates_args=())
def _op_backward(dy: Tensor, x: Tensor) -> Tensor:
    return _run_backward(dy, x)


@_op_backward.register_fake
def _(dy: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _remember(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, dy: Tensor) -> Tensor:
    return _op_backward(dy, *ctx.saved_tensors)


_op.register_autograd(_differentiate, setup_context=_remember)


class AtOnce(torch.autograd.Function):
    """The same without the dispatcher (eager.py)."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _run(x)

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        return _run_backward(dy, *ctx.saved_tensors)


def geglu(x: Tensor) -> Tensor:
    """h gelu(g) of x = [h, g]; x  # (..., 2 d) -> (..., d)"""
    return AtOnce.apply(x) if runs_at_once(x) else _op(x)
