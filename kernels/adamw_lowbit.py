"""One pass of AdamW over a flat buffer of low-bit state: read gradient, weight and moments, write them back.

    m <- b1 m + (1 - b1) g      v <- b2 v + (1 - b2) g^2      w <- w (1 - lr wd) - lr m^ / (sqrt(v^) + eps)
    with an origin w0, afterwards    w <- w + share (w0 - w)                                (L2-SP, arXiv 1802.01483)

All arithmetic is fp32 in the order of torch.optim.AdamW; only the storage differs: 24-bit or randomly rounded weights
(weights24.py), 8- or 4-bit moments (moments.py). One launch updates a whole unit, and its clip factor and overflow flag
are read on the device: the host never waits. Plain fp32 state on a CPU is torch's own fused step, equal bit for bit.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from . import choice
from .adamw_state import ALIGN, CHUNK, State, block_bytes, chunks, layout, moment_slices, views
from .eager import runs_at_once
from .moments import FORMATS, decode, encode
from .weights24 import pack, random_bits, random_key, round_randomly, unpack

try:
    import triton
    import triton.language as tl

    from .moments import decode_tile, encode_tile, load_codes, store_codes
    from .weights24 import pack_tile, random_tile, round_randomly_tile, unpack_tile, widen_tile
except ImportError:  # no Triton, no CUDA path: everything below works by `reference`
    triton = None

__all__ = ["ALIGN", "CHUNK", "State", "adam_", "block_bytes", "layout", "reference", "scalars", "step_", "views"]

BLOCK = 1024  # elements of one program; a multiple of every group


def step_(
    state: State,
    grad: Tensor,
    *,
    lr: float = 0.0,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    step: int = 1,
    clip_scale: Tensor | None = None,
    skip: Tensor | None = None,
    seed: int = 0,
    numbers: Tensor | None = None,
    origin: Tensor | None = None,
    share: float = 0.0,
) -> None:
    """Update `state` in place from `grad` (n elements, any float dtype), which may be used up. `step` counts from 1.

    clip_scale: 0-d, multiplies the gradient (clipping and inverse loss scale). skip: 0-d, nonzero leaves all as it is.
    seed: of random rounding; give every unit its own, so that their noises are independent.
    numbers: `scalars(...)` as an int32 tensor on the device, in place of lr, weight_decay, step, seed and share, for a step
    that is captured once in a CUDA graph and replayed with new numbers.
    origin: w0, n elements in fp16, towards which the new weights are pulled by `share` of the way.
    """
    t = state.tensors
    assert grad.numel() == state.n
    if numbers is None and _fused_by_torch(state, grad):
        if skip is None or not bool(skip):
            g = grad.reshape(-1) if clip_scale is None else grad.reshape(-1).mul_(clip_scale)
            torch._fused_adamw_(
                [t["weight"]], [g], [t["m"]], [t["v"]], [], [torch.tensor(float(step))], lr=lr, beta1=beta1, beta2=beta2,
                weight_decay=weight_decay, eps=eps, amsgrad=False, maximize=False,
            )  # fmt: skip
            for part in chunks(state.n) if origin is not None else ():
                t["weight"][part].lerp_(origin[part].to(torch.float32), share)
        return
    words = scalars(lr, beta1, beta2, weight_decay, step, seed, share)
    (_run if runs_at_once(grad) else _op)(
        t["weight"], t.get("correction"), t["m"], t.get("m_scale"), t["v"], t.get("v_scale"), grad.reshape(-1),
        clip_scale, skip, numbers, words, state.moments, beta1, beta2, eps, state.first, origin,
    )  # fmt: skip


def _fused_by_torch(state: State, grad: Tensor) -> bool:
    """Plain fp32 on a CPU, which torch.optim.AdamW(fused=True) does in one pass where `reference` takes ten."""
    return grad.device.type == "cpu" and state.weights == state.moments == "fp32" and grad.dtype == torch.float32


def scalars(
    lr: float, beta1: float, beta2: float, weight_decay: float, step: int, seed: int, share: float = 0.0
) -> list[int]:
    """What changes from step to step, as six int32 words: decay factor, step size and sqrt(1 - b2^t) in fp32 bits, the two
    words of the random stream's key, and the share of the way back to an origin in fp32 bits."""
    step = max(step, 1)
    floats = (1 - lr * weight_decay, -(lr / (1 - beta1**step)), (1 - beta2**step) ** 0.5)
    words = struct.pack("3f", *floats) + struct.pack("2I", *random_key(seed, step)) + struct.pack("f", share)
    return list(struct.unpack("6i", words))


def _floats(words: list[int]) -> tuple[float, ...]:
    """Decay factor, step size, sqrt(1 - b2^t) and share of `scalars`."""
    return struct.unpack("4f", struct.pack("4i", *words[:3], words[5]))


def adam_(
    w: Tensor, m: Tensor, v: Tensor, g: Tensor,
    decay: float, size: float, root: float, beta1: float, beta2: float, eps: float,
) -> None:  # fmt: skip
    """AdamW in place on fp32 tensors, operation by operation as torch.optim.AdamW does it."""
    if decay != 1:
        w.mul_(decay)
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    w.addcdiv_(m, v.sqrt().div_(root).add_(eps), value=size)


def reference(
    weight: Tensor, correction: Tensor | None, m: Tensor, m_scale: Tensor | None, v: Tensor, v_scale: Tensor | None,
    grad: Tensor, clip_scale: Tensor | None, skip: Tensor | None, numbers: Tensor | None, words: list[int],
    moments: str, beta1: float, beta2: float, eps: float, first: int = 0, origin: Tensor | None = None,
) -> None:  # fmt: skip
    """The same step in torch operations, CHUNK elements at a time, so that no fp32 copy of a whole buffer appears."""
    if skip is not None and not skip.is_meta and bool(skip):
        return
    words = words if numbers is None else numbers.tolist()
    decay, size, root, share = _floats(words)
    form = FORMATS.get(moments)
    for part in chunks(weight.numel()):
        g = grad[part].to(torch.float32)
        if clip_scale is not None:
            g = g.mul_(clip_scale)
        w = weight[part].to(torch.float32) if correction is None else unpack(weight[part], correction[part])
        random = None
        if form is not None or weight.dtype != torch.float32:
            places = torch.arange(first + part.start, first + part.stop, dtype=torch.int32, device=weight.device)
            random = random_bits(places, (words[3], words[4]))
        if form is None:
            adam_(w, m[part], v[part], g, decay, size, root, beta1, beta2, eps)
        else:
            codes, scales = moment_slices(form, part.start, part.stop)
            wide = decode(m[codes], m_scale[scales], v[codes], v_scale[scales], form, part.stop - part.start)
            adam_(w, *wide, g, decay, size, root, beta1, beta2, eps)
            m[codes], m_scale[scales], v[codes], v_scale[scales] = encode(*wide, form, random)
        if origin is not None:
            w.lerp_(origin[part].to(torch.float32), share)
        if correction is not None:
            weight[part], correction[part] = pack(w, weight.dtype, random)
        elif weight.dtype != torch.float32:
            weight[part] = round_randomly(w, weight.dtype, random)


if triton is not None:
    # n and first stay specialised: every unit's is a multiple of ALIGN, and only where the compiler knows that 16 divides it may
    # a mask of the tail be one for a whole vector, without which every load is a single number
    @triton.jit(do_not_specialize=["key0", "key1"])
    def _kernel(
        weight, correction, m, m_scale, v, v_scale, grad, clip_scale, skip, numbers, origin,
        n, first, decay, size, root, key0, key1, share, beta1, beta2, rest1, rest2, eps,
        WEIGHTS: tl.constexpr, FP16: tl.constexpr, BITS: tl.constexpr, TOP: tl.constexpr, COUNT: tl.constexpr,
        GROUP: tl.constexpr, ROWS: tl.constexpr, CLIP: tl.constexpr, SKIP: tl.constexpr, NUMBERS: tl.constexpr,
        ORIGIN: tl.constexpr,
    ):  # fmt: skip
        rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        cols = tl.arange(0, GROUP)
        at = rows[:, None] * GROUP + cols[None, :]
        end = n
        if SKIP:
            end = tl.where(tl.load(skip).to(tl.float32) == 0.0, n, 0)  # nothing is in reach of a skipped step
        mask = at < end
        if NUMBERS:
            decay = tl.load(numbers).to(tl.float32, bitcast=True)
            size = tl.load(numbers + 1).to(tl.float32, bitcast=True)
            root = tl.load(numbers + 2).to(tl.float32, bitcast=True)
            key0 = tl.load(numbers + 3)
            key1 = tl.load(numbers + 4)
            share = tl.load(numbers + 5).to(tl.float32, bitcast=True)
        g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
        if CLIP:
            g = g * tl.load(clip_scale).to(tl.float32)
        stored = tl.load(weight + at, mask=mask, other=0)
        if WEIGHTS == "24bit":
            w = unpack_tile(stored, tl.load(correction + at, mask=mask, other=0), FP16)
        elif WEIGHTS == "16bit_sr":
            w = widen_tile(stored, FP16)
        else:
            w = stored
        groups = tl.cdiv(n, GROUP)
        live = tl.max(mask.to(tl.int32), 1) > 0
        if BITS == 32:
            m_wide = tl.load(m + at, mask=mask, other=0.0)
            v_wide = tl.load(v + at, mask=mask, other=0.0)
        else:
            m_code = load_codes(m, rows, cols, at, mask, BITS, GROUP)
            if BITS == 4:
                m_code -= 8.0
            v_code = load_codes(v, rows, cols, at, mask, BITS, GROUP)
            tm = tl.load(m_scale + rows, mask=live, other=0.0)
            tv = tl.load(v_scale + rows, mask=live, other=0.0)
            m_wide, v_wide = decode_tile(m_code, tm, v_code, tv, TOP, COUNT)

        w = w * decay
        m_wide = m_wide + rest1 * (g - m_wide)
        v_wide = v_wide * beta2 + rest2 * g * g
        w = w + size * tl.div_rn(m_wide, tl.div_rn(tl.sqrt_rn(v_wide), tl.zeros_like(v_wide) + root) + eps)
        if ORIGIN:
            w = w + share * (tl.load(origin + at, mask=mask, other=0.0).to(tl.float32) - w)

        random = random_tile(first + at, key0, key1)
        if WEIGHTS == "24bit":
            stored, rest = pack_tile(w, random, FP16)
            tl.store(correction + at, rest.to(tl.int8), mask=mask)
            tl.store(weight + at, stored.to(tl.int16), mask=mask)
        elif WEIGHTS == "16bit_sr":
            tl.store(weight + at, round_randomly_tile(w, random, FP16).to(tl.int16), mask=mask)
        else:
            tl.store(weight + at, w, mask=mask)
        if BITS == 32:
            tl.store(m + at, m_wide, mask=mask)
            tl.store(v + at, v_wide, mask=mask)
        else:
            m_wide = tl.where(mask, m_wide, 0.0)
            v_wide = tl.where(mask, v_wide, 0.0)
            m_code, tm, v_code, tv = encode_tile(m_wide, v_wide, random, TOP, COUNT)
            if BITS == 4:
                m_code += 8.0
            store_codes(m, m_code, rows, at, mask, groups, BITS, GROUP, ROWS)
            store_codes(v, v_code, rows, at, mask, groups, BITS, GROUP, ROWS)
            tl.store(m_scale + rows, tm, mask=live)
            tl.store(v_scale + rows, tv, mask=live)


@choice.on_its_card
def launch(
    weight: Tensor, correction: Tensor | None, m: Tensor, m_scale: Tensor | None, v: Tensor, v_scale: Tensor | None,
    grad: Tensor, clip_scale: Tensor | None, skip: Tensor | None, numbers: Tensor | None, words: list[int],
    moments: str, beta1: float, beta2: float, eps: float, first: int = 0, origin: Tensor | None = None,
) -> None:  # fmt: skip
    n, form = weight.numel(), FORMATS.get(moments)
    assert n < 1 << 31, "a unit of more than 2^31 weights needs 64-bit offsets"
    group = form.group if form else 128
    top, count = form.levels if form else (1, 1)
    decay, size, root, share = _floats(words)
    bits16 = weight.dtype != torch.float32
    _kernel[(triton.cdiv(n, BLOCK),)](
        weight.view(torch.int16) if bits16 else weight, correction, m, m_scale, v, v_scale, grad,
        clip_scale, skip, numbers, origin,
        n, first, decay, size, root, words[3], words[4], share, beta1, beta2, 1 - beta1, 1 - beta2, eps,
        WEIGHTS="24bit" if correction is not None else "16bit_sr" if bits16 else "fp32",
        FP16=weight.dtype == torch.float16, BITS=form.bits if form else 32, TOP=top, COUNT=count,
        GROUP=group, ROWS=BLOCK // group,
        CLIP=clip_scale is not None, SKIP=skip is not None, NUMBERS=numbers is not None,
        ORIGIN=origin is not None,
    )  # fmt: skip


def _run(weight: Tensor, *rest) -> None:
    (launch if choice.takes(weight) else reference)(weight, *rest)


@torch.library.custom_op("trainer::adamw_lowbit", mutates_args=("weight", "correction", "m", "m_scale", "v", "v_scale"))
def _op(
    weight: Tensor, correction: Tensor | None, m: Tensor, m_scale: Tensor | None, v: Tensor, v_scale: Tensor | None,
    grad: Tensor, clip_scale: Tensor | None, skip: Tensor | None, numbers: Tensor | None, words: list[int],
    moments: str, beta1: float, beta2: float, eps: float, first: int = 0, origin: Tensor | None = None,
) -> None:  # fmt: skip
    state = weight, correction, m, m_scale, v, v_scale
    _run(*state, grad, clip_scale, skip, numbers, words, moments, beta1, beta2, eps, first, origin)


@_op.register_fake
def _(
    weight: Tensor, correction: Tensor | None, m: Tensor, m_scale: Tensor | None, v: Tensor, v_scale: Tensor | None,
    grad: Tensor, clip_scale: Tensor | None, skip: Tensor | None, numbers: Tensor | None, words: list[int],
    moments: str, beta1: float, beta2: float, eps: float, first: int = 0, origin: Tensor | None = None,
) -> None:  # fmt: skip
    """Everything happens in place: a simulation sees no new bytes."""
