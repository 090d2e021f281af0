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

if choice.triton is not None:  # else no CUDA path: everything below works by `reference`
    import triton

    from .groupnorm_card import backward, backward_sums, forward, gather, merge, statistics


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


def _geometry(x: Tensor) -> tuple[Tensor, int, int, int, int, int, int, int]:
    """(x, dense in its layout, N, channels, area, stride of a channel, stride of a position, tile positions, tile channels)"""
    batch, channels = x.shape[:2]
    area = x.numel() // (batch * channels)
    if _layout(x) == torch.channels_last:
        return x, batch, channels, area, 1, channels, 64, 64
    return x.contiguous(), batch, channels, area, area, 1, 256, 16


# The host's time counts where nothing is recorded, so a launch asks torch for as few operators as it can.


@choice.on_its_card
def launch(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    x, batch, channels, area, stride_c, stride_a, ba, bc = _geometry(x)
    tiles, width = triton.cdiv(area, ba), channels // groups
    grid, wide = (tiles, triton.cdiv(channels, bc), batch), triton.next_power_of_2(width)
    tile = torch.empty(2, batch, tiles, channels, dtype=torch.float32, device=x.device)
    mean = torch.empty(batch, groups, dtype=torch.float32, device=x.device)
    rstd, y = torch.empty_like(mean), torch.empty_like(x)
    statistics[grid](x, tile, area, channels, stride_c, stride_a, BA=ba, BC=bc)
    merge[(batch, groups)](
        tile, mean, rstd, tiles, area, channels, eps, BA=ba, WIDTH=width, BC=wide, BT=max(1, 1024 // wide)
    )
    forward[grid](x, weight, bias, mean, rstd, y, area, channels, groups, stride_c, stride_a, SILU=silu, BA=ba, BC=bc)
    return y, mean, rstd


@choice.on_its_card
def launch_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    x, batch, channels, area, stride_c, stride_a, ba, bc = _geometry(x)
    dy = dy.contiguous(memory_format=_layout(x))
    tiles, width = triton.cdiv(area, ba), channels // groups
    grid, wide = (tiles, triton.cdiv(channels, bc), batch), triton.next_power_of_2(width)
    sums = torch.empty(2, batch, tiles, channels, dtype=torch.float32, device=x.device)
    pull = torch.empty(2, batch, groups, dtype=torch.float32, device=x.device)
    dx, dw, db = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
    shape = (area, channels, groups, stride_c, stride_a)
    backward_sums[grid](dy, x, weight, bias, mean, rstd, sums, *shape, SILU=silu, BA=ba, BC=bc)
    gather[(groups,)](
        sums, weight, pull, dw, db, batch, tiles, area, channels, WIDTH=width, BC=wide, BT=max(1, 1024 // wide)
    )
    backward[grid](dy, x, weight, bias, mean, rstd, pull, dx, *shape, SILU=silu, BA=ba, BC=bc)
    return dx, dw, db


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
