"""One pass of AdamW over a flat buffer of low-bit state: read gradient, weight, correction and moments, write them back.

    m <- b1 m + (1 - b1) g      v <- b2 v + (1 - b2) g^2      w <- w (1 - lr wd) - lr m^ / (sqrt(v^) + eps)

All arithmetic is fp32 in the order of torch.optim.AdamW (with fp32 state the CPU results are equal bit for bit); only
the storage differs: 24-bit or stochastically rounded weights (weights24.py), 8- or 4-bit moments (moments.py). One
launch updates a whole unit, and its clip factor and overflow flag are read on the device: the host never waits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .adamw_state import ALIGN, CHUNK, State, block_bytes, chunks, layout, moment_slices, views
from .moments import FORMATS, dequantise_m, dequantise_v, quantise_m, quantise_v
from .weights24 import pack, random_bits, random_key, round_randomly, unpack

__all__ = ["ALIGN", "CHUNK", "State", "adam_", "block_bytes", "layout", "reference", "step_", "views"]


def step_(
    state: State,
    grad: Tensor,
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    step: int,
    clip_scale: Tensor | None = None,
    skip: Tensor | None = None,
    seed: int = 0,
) -> None:
    """Update `state` in place from `grad` (n elements, any float dtype). `step` counts from 1.

    clip_scale: 0-d, multiplies the gradient (clipping and inverse loss scale). skip: 0-d, nonzero leaves all as it is.
    seed: of stochastic rounding; give every unit its own, so that their noises are independent.
    """
    t = state.tensors
    _op(
        t["weight"], t.get("correction"), t["m"], t.get("m_scale"), t["v"], t.get("v_scale"), grad.reshape(-1), clip_scale, skip,
        state.moments, lr, beta1, beta2, eps, weight_decay, step, seed,
    )  # fmt: skip


def adam_(
    w: Tensor,
    m: Tensor,
    v: Tensor,
    g: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
) -> None:
    """AdamW in place on fp32 tensors, operation by operation as torch.optim.AdamW does it."""
    if weight_decay != 0:
        w.mul_(1 - lr * weight_decay)
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    denominator = (v.sqrt() / (1 - beta2**step) ** 0.5).add_(eps)
    w.addcdiv_(m, denominator, value=-(lr / (1 - beta1**step)))


def reference(
    weight: Tensor, correction: Tensor | None, m: Tensor, m_scale: Tensor | None, v: Tensor, v_scale: Tensor | None, grad: Tensor,
    clip_scale: Tensor | None, skip: Tensor | None, moments: str,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int, seed: int,
) -> None:  # fmt: skip
    """The same step in torch operations, CHUNK elements at a time, so that no fp32 copy of a whole buffer appears."""
    if skip is not None and bool(skip):
        return
    form = FORMATS.get(moments)
    key = random_key(seed, step)
    for part in chunks(weight.numel()):
        n = part.stop - part.start
        g = grad[part].to(torch.float32)
        if clip_scale is not None:
            g = g * clip_scale
        if correction is not None:
            w = unpack(weight[part], correction[part])
        else:
            w = weight[part].to(torch.float32)
        if form is None:
            m_part, v_part = m[part], v[part]
        else:
            codes, scales = moment_slices(form, part.start, part.stop)
            m_part = dequantise_m(m[codes], m_scale[scales], form, n)
            v_part = dequantise_v(v[codes], v_scale[scales], form, n)
        adam_(w, m_part, v_part, g, lr, beta1, beta2, eps, weight_decay, step)
        if form is not None:
            m[codes], m_scale[scales] = quantise_m(m_part, form)
            v[codes], v_scale[scales] = quantise_v(v_part, form)
        if correction is not None:
            weight[part], correction[part] = pack(w, weight.dtype)
        elif weight.dtype != torch.float32:
            indices = torch.arange(part.start, part.stop, dtype=torch.int32, device=weight.device)
            weight[part] = round_randomly(w, weight.dtype, random_bits(indices, key))


@torch.library.custom_op(
    "trainer::adamw_lowbit", mutates_args=("weight", "correction", "m", "m_scale", "v", "v_scale"), device_types="cpu"
)
def _op(
    weight: Tensor, correction: Tensor | None, m: Tensor, m_scale: Tensor | None, v: Tensor, v_scale: Tensor | None, grad: Tensor,
    clip_scale: Tensor | None, skip: Tensor | None, moments: str,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int, seed: int,
) -> None:  # fmt: skip
    reference(
        weight,
        correction,
        m,
        m_scale,
        v,
        v_scale,
        grad,
        clip_scale,
        skip,
        moments,
        lr,
        beta1,
        beta2,
        eps,
        weight_decay,
        step,
        seed,
    )


@_op.register_fake
def _(
    weight: Tensor, correction: Tensor | None, m: Tensor, m_scale: Tensor | None, v: Tensor, v_scale: Tensor | None, grad: Tensor,
    clip_scale: Tensor | None, skip: Tensor | None, moments: str,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int, seed: int,
) -> None:  # fmt: skip
    assert grad.numel() == weight.numel()
