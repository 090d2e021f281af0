"""LayerNorm over the last dimension, remembering the input and two numbers a row.

    x^ = (x - mean) / sqrt(var + eps)      y = w x^ + b
    dx = (w dy - mean(w dy) - x^ mean(w dy x^)) / sqrt(var + eps)

Eager mode under autocast keeps fp32 copies of what it normalises; here x stays in its own dtype and all arithmetic is
fp32 in registers, one program a block of rows, with dw and db summed in fp32 by a few persistent programs.
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

PROGRAMS = 256  # that share the rows in backward: about two for each multiprocessor, and rows of dw partial sums


def reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """-> y like x, mean and rstd (rows,) in fp32; in fp32 bit for bit what torch's layer_norm gives"""
    y, mean, rstd = torch.native_layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps)
    return y.to(x.dtype), mean.view(-1), rstd.view(-1)


def reference_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    stats = (*x.shape[:-1], 1)
    dx, dw, db = torch.ops.aten.native_layer_norm_backward(
        dy.float(),
        x.float(),
        x.shape[-1:],
        mean.view(stats),
        rstd.view(stats),
        weight.float(),
        bias.float(),
        [True] * 3,
    )
    return dx.to(x.dtype), dw.to(weight.dtype), db.to(bias.dtype)


if triton is not None:

    @triton.jit
    def _forward(x, weight, bias, y, mean, rstd, rows, width, eps, BR: tl.constexpr, BW: tl.constexpr):
        r = tl.program_id(0) * BR + tl.arange(0, BR)
        c = tl.arange(0, BW)
        mask = (r < rows)[:, None] & (c < width)[None, :]
        at = r.to(tl.int64)[:, None] * width + c[None, :]
        values = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        center = tl.sum(values, 1) / width
        away = tl.where(mask, values - center[:, None], 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(away * away, 1) / width + eps)
        w = tl.load(weight + c, mask=c < width, other=0.0).to(tl.float32)
        b = tl.load(bias + c, mask=c < width, other=0.0).to(tl.float32)
        tl.store(y + at, away * scale[:, None] * w[None, :] + b[None, :], mask=mask)
        tl.store(mean + r, center, mask=r < rows)
        tl.store(rstd + r, scale, mask=r < rows)

    @triton.jit
    def _backward(dy, x, weight, mean, rstd, dx, sums, rows, width, BR: tl.constexpr, BW: tl.constexpr):
        """each program takes every PROGRAMS-th block of rows; sums (2, PROGRAMS, width) holds its share of db and dw"""
        c = tl.arange(0, BW)
        w = tl.load(weight + c, mask=c < width, other=0.0).to(tl.float32)
        db = tl.zeros((BW,), tl.float32)
        dw = tl.zeros((BW,), tl.float32)
        for first in range(tl.program_id(0) * BR, rows, tl.num_programs(0) * BR):
            r = first + tl.arange(0, BR)
            mask = (r < rows)[:, None] & (c < width)[None, :]
            at = r.to(tl.int64)[:, None] * width + c[None, :]
            grad = tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)
            center = tl.load(mean + r, mask=r < rows, other=0.0)
            scale = tl.load(rstd + r, mask=r < rows, other=0.0)
            values = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
            normal = tl.where(mask, (values - center[:, None]) * scale[:, None], 0.0)
            db += tl.sum(grad, 0)
            dw += tl.sum(grad * normal, 0)
            grad *= w[None, :]
            pull = tl.sum(grad, 1) / width
            twist = tl.sum(grad * normal, 1) / width
            tl.store(dx + at, (grad - pull[:, None] - normal * twist[:, None]) * scale[:, None], mask=mask)
        at = tl.program_id(0) * width + c
        tl.store(sums + at, db, mask=c < width)
        tl.store(sums + tl.num_programs(0) * width + at, dw, mask=c < width)

    @triton.jit
    def _gather(sums, dw, db, programs, width, BP: tl.constexpr, BW: tl.constexpr):
        """the programs' shares of BW columns, always in the same order"""
        c = tl.program_id(0) * BW + tl.arange(0, BW)
        bias = tl.zeros((BP, BW), tl.float32)
        weight = tl.zeros((BP, BW), tl.float32)
        for first in range(0, programs, BP):
            p = first + tl.arange(0, BP)
            mask = (p < programs)[:, None] & (c < width)[None, :]
            at = p[:, None] * width + c[None, :]
            bias += tl.load(sums + at, mask=mask, other=0.0)
            weight += tl.load(sums + programs * width + at, mask=mask, other=0.0)
        tl.store(db + c, tl.sum(bias, 0), mask=c < width)
        tl.store(dw + c, tl.sum(weight, 0), mask=c < width)


@choice.on_its_card
def launch(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    x, width = x.contiguous(), x.shape[-1]
    rows, br, bw = _blocks(x)
    y, mean = torch.empty_like(x), torch.empty(rows, dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    _forward[(triton.cdiv(rows, br),)](x, weight, bias, y, mean, rstd, rows, width, eps, BR=br, BW=bw)
    return y, mean, rstd


@choice.on_its_card
def launch_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    x, dy, width = x.contiguous(), dy.contiguous(), x.shape[-1]
    rows, br, bw = _blocks(x)
    programs = min(PROGRAMS, triton.cdiv(rows, br))
    sums = torch.empty(2, programs, width, dtype=torch.float32, device=x.device)
    # not two views of one sum: a custom op may not return tensors that share memory
    dx, dw, db = torch.empty_like(x), torch.empty_like(weight), torch.empty(width, dtype=weight.dtype, device=x.device)
    _backward[(programs,)](dy, x, weight, mean, rstd, dx, sums, rows, width, BR=br, BW=bw)
    _gather[(triton.cdiv(width, 64),)](sums, dw, db, programs, width, BP=32, BW=64)
    return dx, dw, db


def _blocks(x: Tensor) -> tuple[int, int, int]:
    """(rows, rows of a tile, its width): tiles of about 2,048 values fit the registers of 4 warps"""
    wide = triton.next_power_of_2(x.shape[-1])
    return x.numel() // x.shape[-1], max(1, 2048 // wide), wide


def _run(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return (launch if choice.takes(x) else reference)(x, weight, bias, eps)


def _run_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    run = launch_backward if choice.takes(x) else reference_backward
    return run(dy, x, weight, bias, mean, rstd)


@torch.library.custom_op("trainer::layernorm", mutates_args=())
def _op(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return _run(x, weight, bias, eps)


@_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32)
    return x.new_empty(x.shape), mean, torch.empty_like(mean)


@torch.library.custom_op("trainer::layernorm_backward", mutates_args=())
def _op_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _run_backward(dy, x, weight, bias, mean, rstd)


@_op_backward.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(weight), torch.empty_like(bias)


def _remember(ctx, inputs, output) -> None:
    x, weight, bias, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, bias, output[1], output[2])


def _differentiate(ctx, dy: Tensor, *_) -> tuple:
    return *_op_backward(dy, *ctx.saved_tensors), None


_op.register_autograd(_differentiate, setup_context=_remember)


class AtOnce(torch.autograd.Function):
    """The same without the dispatcher (eager.py)."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, mean, rstd = _run(x, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return y

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple:
        return *_run_backward(dy, *ctx.saved_tensors), None


def layernorm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """layer_norm over the last dimension; x  # (..., width)"""
    return AtOnce.apply(x, weight, bias, eps) if runs_at_once(x) else _op(x, weight, bias, eps)[0]
