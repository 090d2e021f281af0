"""GroupNorm with SiLU behind it, remembering nothing but the input.

    x^ = (x - mean_g) / sqrt(var_g + eps)     z = w x^ + b     y = z sigmoid(z)

Eager mode keeps x, z and y for backward and CUDA's GroupNorm converts channels_last input to NCHW and back
(pytorch#111824). Here only x and two numbers a group are kept, z is computed again in backward, and both layouts are
read as they lie. Statistics are merged from tiles by Chan's formula, so that a large mean does not eat the variance.
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


def reference(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """-> y like x, mean and rstd (N, groups) in fp32; in fp32 bit for bit what torch's group_norm and silu give"""
    batch, channels, area = x.shape[0], x.shape[1], x[0, 0].numel()
    wide = _wide(x)
    y, mean, rstd = torch.native_group_norm(wide, weight.float(), bias.float(), batch, channels, area, groups, eps)
    y = torch.nn.functional.silu(y) if silu else y
    return y.to(x.dtype).contiguous(memory_format=_layout(x)), mean, rstd


def reference_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, area = x.shape[0], x.shape[1], x[0, 0].numel()
    dy, wide, w = dy.float(), _wide(x), weight.float()
    if silu:
        z = torch.native_group_norm(wide, w, bias.float(), batch, channels, area, groups, eps)[0]
        dy = torch.ops.aten.silu_backward(dy, z)
        del z
    dy = dy.contiguous(memory_format=_layout(wide))
    dx, dw, db = torch.ops.aten.native_group_norm_backward(
        dy, wide, mean, rstd, w, batch, channels, area, groups, [True] * 3
    )
    return dx.to(x.dtype).contiguous(memory_format=_layout(x)), dw.to(weight.dtype), db.to(bias.dtype)


def _wide(x: Tensor) -> Tensor:
    """x in fp32, and on a card as NCHW: torch's GroupNorm refuses channels last there. What is simulated is a card's."""
    if x.device.type == "cpu":
        return x.float()
    return x.to(torch.float32, memory_format=torch.contiguous_format)


def _layout(x: Tensor) -> torch.memory_format:
    channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


if triton is not None:

    @triton.jit
    def _tile(area, channels, stride_c, stride_a, BA: tl.constexpr, BC: tl.constexpr):
        """channels, offsets and mask of this program's (positions, channels) tile inside one sample"""
        a = tl.program_id(0) * BA + tl.arange(0, BA)
        c = tl.program_id(1) * BC + tl.arange(0, BC)
        mask = (a < area)[:, None] & (c < channels)[None, :]
        return c, a[:, None] * stride_a + c[None, :] * stride_c, mask

    @triton.jit
    def _statistics(x, tile_mean, tile_m2, area, channels, stride_c, stride_a, BA: tl.constexpr, BC: tl.constexpr):
        """mean and sum of squared deviations of every channel within a tile -> (N, tiles, C)"""
        n = tl.program_id(2).to(tl.int64)
        c, offsets, mask = _tile(area, channels, stride_c, stride_a, BA, BC)
        values = tl.load(x + n * area * channels + offsets, mask=mask, other=0.0).to(tl.float32)
        count = tl.minimum(area - tl.program_id(0) * BA, BA).to(tl.float32)
        mean = tl.sum(values, 0) / count
        away = tl.where(mask, values - mean[None, :], 0.0)
        at = (n * tl.num_programs(0) + tl.program_id(0)) * channels + c
        tl.store(tile_mean + at, mean, mask=c < channels)
        tl.store(tile_m2 + at, tl.sum(away * away, 0), mask=c < channels)

    @triton.jit
    def _merge(
        tile_mean,
        tile_m2,
        mean,
        rstd,
        tiles,
        area,
        channels,
        eps,
        BA: tl.constexpr,
        WIDTH: tl.constexpr,
        BC: tl.constexpr,
        BT: tl.constexpr,
    ):
        """one program a (sample, group): Chan's merge of all tiles of its WIDTH channels"""
        n, g, groups = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
        c = tl.arange(0, BC)
        total = tl.zeros((BT, BC), tl.float32)
        for first in range(0, tiles, BT):
            t = first + tl.arange(0, BT)
            mask = (t < tiles)[:, None] & (c < WIDTH)[None, :]
            at = (n * tiles + t)[:, None] * channels + g * WIDTH + c[None, :]
            count = tl.minimum(area - t * BA, BA).to(tl.float32)
            total += tl.load(tile_mean + at, mask=mask, other=0.0) * count[:, None]
        center = tl.sum(tl.sum(total, 1), 0) / (area * WIDTH)
        total = tl.zeros((BT, BC), tl.float32)
        for first in range(0, tiles, BT):
            t = first + tl.arange(0, BT)
            mask = (t < tiles)[:, None] & (c < WIDTH)[None, :]
            at = (n * tiles + t)[:, None] * channels + g * WIDTH + c[None, :]
            count = tl.minimum(area - t * BA, BA).to(tl.float32)
            away = tl.load(tile_mean + at, mask=mask, other=0.0) - center
            total += tl.where(mask, tl.load(tile_m2 + at, mask=mask, other=0.0) + away * away * count[:, None], 0.0)
        variance = tl.sum(tl.sum(total, 1), 0) / (area * WIDTH)
        tl.store(mean + n * groups + g, center)
        tl.store(rstd + n * groups + g, 1.0 / tl.sqrt(variance + eps))

    @triton.jit
    def _normalise(x, mean, rstd, n, c, offsets, mask, area, channels, groups):
        """-> x^ of a tile, and 1 / sqrt(var) of each of its channels"""
        at = n * groups + c // (channels // groups)
        scale = tl.load(rstd + at, mask=c < channels, other=0.0)
        center = tl.load(mean + at, mask=c < channels, other=0.0)
        values = tl.load(x + n * area * channels + offsets, mask=mask, other=0.0).to(tl.float32)
        return (values - center[None, :]) * scale[None, :], scale

    @triton.jit
    def _forward(
        x,
        weight,
        bias,
        mean,
        rstd,
        y,
        area,
        channels,
        groups,
        stride_c,
        stride_a,
        SILU: tl.constexpr,
        BA: tl.constexpr,
        BC: tl.constexpr,
    ):
        n = tl.program_id(2).to(tl.int64)
        c, offsets, mask = _tile(area, channels, stride_c, stride_a, BA, BC)
        normal, _ = _normalise(x, mean, rstd, n, c, offsets, mask, area, channels, groups)
        w = tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float32)
        b = tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)
        z = normal * w[None, :] + b[None, :]
        if SILU:
            z = z / (1.0 + tl.exp(-z))
        tl.store(y + n * area * channels + offsets, z, mask=mask)

    @triton.jit
    def _slope(dy, normal, w, b, n, offsets, mask, area, channels, SILU: tl.constexpr):
        """dL/dz of a tile"""
        grad = tl.load(dy + n * area * channels + offsets, mask=mask, other=0.0).to(tl.float32)
        if SILU:
            z = normal * w[None, :] + b[None, :]
            gate = 1.0 / (1.0 + tl.exp(-z))
            grad = grad * gate * (1.0 + z * (1.0 - gate))
        return grad

    @triton.jit
    def _backward_sums(
        dy,
        x,
        weight,
        bias,
        mean,
        rstd,
        sums,
        area,
        channels,
        groups,
        stride_c,
        stride_a,
        SILU: tl.constexpr,
        BA: tl.constexpr,
        BC: tl.constexpr,
    ):
        """sum of dz and of dz x^ of every channel within a tile -> sums (2, N, tiles, C)"""
        n = tl.program_id(2).to(tl.int64)
        c, offsets, mask = _tile(area, channels, stride_c, stride_a, BA, BC)
        normal, _ = _normalise(x, mean, rstd, n, c, offsets, mask, area, channels, groups)
        w = tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float32)
        b = tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)
        dz = _slope(dy, normal, w, b, n, offsets, mask, area, channels, SILU)
        at = (n * tl.num_programs(0) + tl.program_id(0)) * channels + c
        tl.store(sums + at, tl.sum(dz, 0), mask=c < channels)
        half = tl.num_programs(2) * tl.num_programs(0) * channels
        tl.store(sums + half + at, tl.sum(dz * normal, 0), mask=c < channels)

    @triton.jit
    def _backward(
        dy,
        x,
        weight,
        bias,
        mean,
        rstd,
        pull,
        dx,
        area,
        channels,
        groups,
        stride_c,
        stride_a,
        SILU: tl.constexpr,
        BA: tl.constexpr,
        BC: tl.constexpr,
    ):
        """dx = rstd (w dz - mean_g(w dz) - x^ mean_g(w dz x^)); `pull` (2, N, groups) holds the two means"""
        n = tl.program_id(2).to(tl.int64)
        c, offsets, mask = _tile(area, channels, stride_c, stride_a, BA, BC)
        normal, scale = _normalise(x, mean, rstd, n, c, offsets, mask, area, channels, groups)
        w = tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float32)
        b = tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)
        dz = _slope(dy, normal, w, b, n, offsets, mask, area, channels, SILU)
        at = n * groups + c // (channels // groups)
        first = tl.load(pull + at, mask=c < channels, other=0.0)
        second = tl.load(pull + tl.num_programs(2) * groups + at, mask=c < channels, other=0.0)
        grad = (dz * w[None, :] - first[None, :] - normal * second[None, :]) * scale[None, :]
        tl.store(dx + n * area * channels + offsets, grad, mask=mask)


def _geometry(x: Tensor) -> tuple[int, int, int, int, int, int, int]:
    """(N, channels, area, stride of a channel, stride of a position, tile positions, tile channels)"""
    batch, channels, area = x.shape[0], x.shape[1], x[0, 0].numel()
    if _layout(x) == torch.channels_last:
        return batch, channels, area, 1, channels, 64, 64
    return batch, channels, area, area, 1, 256, 16


@choice.on_its_card
def launch(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    x = x.contiguous(memory_format=_layout(x))
    batch, channels, area, stride_c, stride_a, ba, bc = _geometry(x)
    tiles = triton.cdiv(area, ba)
    grid = (tiles, triton.cdiv(channels, bc), batch)
    tile = torch.empty(2, batch, tiles, channels, dtype=torch.float32, device=x.device)
    mean = torch.empty(batch, groups, dtype=torch.float32, device=x.device)
    rstd, y, width = torch.empty_like(mean), torch.empty_like(x), channels // groups
    _statistics[grid](x, tile[0], tile[1], area, channels, stride_c, stride_a, BA=ba, BC=bc)
    wide = triton.next_power_of_2(width)
    _merge[(batch, groups)](
        tile[0], tile[1], mean, rstd, tiles, area, channels, eps, BA=ba, WIDTH=width, BC=wide, BT=max(1, 1024 // wide)
    )
    _forward[grid](x, weight, bias, mean, rstd, y, area, channels, groups, stride_c, stride_a, SILU=silu, BA=ba, BC=bc)
    return y, mean, rstd


@choice.on_its_card
def launch_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dy, x = (each.contiguous(memory_format=_layout(x)) for each in (dy, x))
    batch, channels, area, stride_c, stride_a, ba, bc = _geometry(x)
    grid = (triton.cdiv(area, ba), triton.cdiv(channels, bc), batch)
    sums = torch.empty(2, batch, grid[0], channels, dtype=torch.float32, device=x.device)
    dx = torch.empty_like(x)
    shape = (area, channels, groups, stride_c, stride_a)
    _backward_sums[grid](dy, x, weight, bias, mean, rstd, sums, *shape, SILU=silu, BA=ba, BC=bc)
    sums = sums.sum(2)  # (2, N, C): small from here on
    pull = (sums * weight.float()).view(2, batch, groups, -1).sum(3) / (area * (channels // groups))
    _backward[grid](dy, x, weight, bias, mean, rstd, pull, dx, *shape, SILU=silu, BA=ba, BC=bc)
    db, dw = sums.sum(1).unbind()
    return dx, dw.to(weight.dtype), db.to(bias.dtype)


def _run(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> tuple[Tensor, Tensor, Tensor]:
    return (launch if choice.takes(x) else reference)(x, weight, bias, groups, eps, silu)


def _run_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    run = launch_backward if choice.takes(x) else reference_backward
    return run(dy, x, weight, bias, mean, rstd, groups, eps, silu)


@torch.library.custom_op("trainer::groupnorm_silu", mutates_args=())
def _op(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> tuple[Tensor, Tensor, Tensor]:
    return _run(x, weight, bias, groups, eps, silu)


@_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.new_empty(x.shape[0], groups, dtype=torch.float32)
    return torch.empty_like(x, memory_format=_layout(x)), mean, torch.empty_like(mean)


@torch.library.custom_op("trainer::groupnorm_silu_backward", mutates_args=())
def _op_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _run_backward(dy, x, weight, bias, mean, rstd, groups, eps, silu)


@_op_backward.register_fake
def _(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x, memory_format=_layout(x)), torch.empty_like(weight), torch.empty_like(bias)


def _remember(ctx, inputs, output) -> None:
    x, weight, bias, ctx.groups, ctx.eps, ctx.silu = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, bias, output[1], output[2])


def _differentiate(ctx, dy: Tensor, *_) -> tuple:
    return *_op_backward(dy, *ctx.saved_tensors, ctx.groups, ctx.eps, ctx.silu), None, None, None


_op.register_autograd(_differentiate, setup_context=_remember)


class AtOnce(torch.autograd.Function):
    """The same without the dispatcher (eager.py)."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
        y, mean, rstd = _run(x, weight, bias, groups, eps, silu)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.how = groups, eps, silu
        return y

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple:
        return *_run_backward(dy, *ctx.saved_tensors, *ctx.how), None, None, None


def groupnorm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float = 1e-5, silu: bool = True
) -> Tensor:
    """silu(group_norm(x)), or group_norm(x) alone; x  # (N, C, ...)"""
    if runs_at_once(x):
        return AtOnce.apply(x, weight, bias, groups, eps, silu)
    return _op(x, weight, bias, groups, eps, silu)[0]
