"""Adam's moments in 8 or 4 bits: a small code for each value, one fp32 scale for each group of neighbours.

    v = (s y^2)^2     y = (q + 1) / Q      s = max sqrt(v) of the group; a code is rounded up or down at random so that
                                           its v is right on average
    m = t (q / Q') sqrt(v)                 t = max |m / sqrt(v)| of the group; rounded to nearest

Three lessons are in this. Rounding v to nearest freezes it: a step with beta2 = 0.999 moves v by less than half a
code, so ratios inside a group never move again (error of 800 updates with heavy-tailed gradients 0.060, rounded at
random 0.030). Code zero still means "a little": a v of 0 would make the update explode (arXiv 2309.01507). And m is
kept as the update it makes, m / sqrt(v), which has no wide range within a group, so a linear code serves it (0.11
against 0.28 for softsign codes of m itself where gradients inside a group differ a hundredfold).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # the torch functions below need none of it
    triton = None


@dataclass(frozen=True)
class Format:
    """bits of a code, and elements that share a scale"""

    bits: int
    group: int

    @property
    def levels(self) -> tuple[int, int]:
        """(largest code of m, number of codes of v)"""
        return (1 << (self.bits - 1)) - 1, 1 << self.bits

    def code_shape(self, n: int) -> tuple[int]:
        return (n,) if self.bits == 8 else (-(-n // self.group) * self.group // 2,)

    def scale_shape(self, n: int) -> tuple[int]:
        return (-(-n // self.group),)


FORMATS = {"8bit": Format(8, 64), "4bit": Format(4, 128)}


def encode(m: Tensor, v: Tensor, form: Format, random: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """fp32 m and v (n,) -> (codes of m, its scales, codes of v, its scales). `random`: int32, its high half serves"""
    n, (top, count) = m.numel(), form.levels
    root = _rows(v.sqrt(), form.group)
    v_scale = root.amax(1)
    x = root / torch.where(v_scale > 0, v_scale, 1.0)[:, None]
    low = torch.floor(x.sqrt() * count - 1).clamp_(0, count - 2)
    below, above = ((low + 1) * (1 / count)).pow_(4), ((low + 2) * (1 / count)).pow_(4)
    chance = (x * x - below) / (above - below)
    v_code = low + (_rows((random >> 16 & 0xFFFF).float() * 2.0**-16, form.group) < chance)
    root = ((v_code + 1) * (1 / count)).square_() * v_scale[:, None]  # what decoding will find
    ratio = torch.where(root > 0, _rows(m, form.group) / root, 0.0)
    m_scale = ratio.abs().amax(1)
    m_code = torch.floor(ratio / torch.where(m_scale > 0, m_scale, 1.0)[:, None] * top + 0.5)
    if form.bits == 4:
        return _pack(m_code + 8), m_scale, _pack(v_code), v_scale
    return m_code.view(-1)[:n].to(torch.int8), m_scale, v_code.view(-1)[:n].to(torch.uint8), v_scale


def decode(
    m_code: Tensor, m_scale: Tensor, v_code: Tensor, v_scale: Tensor, form: Format, n: int
) -> tuple[Tensor, Tensor]:
    """-> m, v in fp32 (n,)"""
    top, count = form.levels
    if form.bits == 4:
        m, v = _unpack(m_code, form.group) - 8, _unpack(v_code, form.group)
    else:
        m, v = _rows(m_code.float(), form.group), _rows(v_code.float(), form.group)
    root = ((v + 1) * (1 / count)).square_() * v_scale[:, None]
    m = m * (1 / top) * m_scale[:, None] * root
    return m.view(-1)[:n], root.square_().view(-1)[:n]


def _rows(x: Tensor, group: int) -> Tensor:
    """(n,) -> (groups, group), the last one filled up with zeros"""
    missing = -x.numel() % group
    return (torch.nn.functional.pad(x, (0, missing)) if missing else x).view(-1, group)


def _pack(rows: Tensor) -> Tensor:
    """Codes 0..15 in rows of a group -> bytes: the first half of a group in the low bits, the second in the high."""
    low, high = rows.to(torch.uint8).chunk(2, 1)
    return (low | high << 4).reshape(-1)


def _unpack(codes: Tensor, group: int) -> Tensor:
    packed = codes.view(-1, group // 2)
    return torch.cat([packed & 15, packed >> 4], 1).float()


if triton is not None:

    @triton.jit
    def load_codes(codes, rows, cols, offsets, mask, BITS: tl.constexpr, GROUP: tl.constexpr):
        """codes of a (rows, GROUP) tile as fp32"""
        if BITS == 8:
            return tl.load(codes + offsets, mask=mask, other=0).to(tl.float32)
        half: tl.constexpr = GROUP // 2
        byte = tl.load(codes + rows[:, None] * half + (cols % half)[None, :], mask=mask, other=0).to(tl.int32)
        return ((byte >> ((cols // half) * 4)[None, :]) & 15).to(tl.float32)

    @triton.jit
    def store_codes(codes, q, rows, offsets, mask, groups, BITS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr):
        if BITS == 8:
            tl.store(codes + offsets, q.to(tl.int32), mask=mask)
        else:
            half: tl.constexpr = GROUP // 2
            parts = tl.reshape(q.to(tl.int32), (ROWS, 2, half)) << (tl.arange(0, 2) * 4)[None, :, None]
            at = rows[:, None] * half + tl.arange(0, half)[None, :]
            live = tl.max(mask.to(tl.int32), 1) > 0
            tl.store(codes + at, tl.sum(parts, 1), mask=live[:, None] & (rows < groups)[:, None])

    @triton.jit
    def decode_tile(m_code, m_scale, v_code, v_scale, TOP: tl.constexpr, COUNT: tl.constexpr):
        """codes (rows, GROUP) and scales (rows,) -> m, v"""
        y = (v_code + 1.0) * (1.0 / COUNT)
        root = y * y * v_scale[:, None]
        return m_code * (1.0 / TOP) * m_scale[:, None] * root, root * root

    @triton.jit
    def encode_tile(m, v, random, TOP: tl.constexpr, COUNT: tl.constexpr):
        """m, v (rows, GROUP), zero where there is no element -> codes and scales of m, then of v"""
        root = tl.sqrt_rn(v)
        v_scale = tl.max(root, 1)
        x = tl.div_rn(root, tl.where(v_scale > 0, v_scale, 1.0)[:, None] + tl.zeros_like(root))
        low = tl.minimum(tl.maximum(tl.floor(tl.sqrt_rn(x) * COUNT - 1.0), 0.0), COUNT - 2.0)
        below = (low + 1.0) * (1.0 / COUNT)
        above = (low + 2.0) * (1.0 / COUNT)
        below = below * below * below * below
        above = above * above * above * above
        chance = (x * x - below) / (above - below)
        unit = ((random >> 16) & 0xFFFF).to(tl.float32) * (1.0 / 65536)
        v_code = low + tl.where(unit < chance, 1.0, 0.0)
        y = (v_code + 1.0) * (1.0 / COUNT)
        root = y * y * v_scale[:, None]
        ratio = tl.where(root > 0, m / tl.where(root > 0, root, 1.0), 0.0)
        m_scale = tl.max(tl.abs(ratio), 1)
        m_code = tl.floor(ratio / tl.where(m_scale > 0, m_scale, 1.0)[:, None] * TOP + 0.5)
        return m_code, m_scale, v_code, v_scale
