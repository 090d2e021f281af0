"""Adam's moments in 8 or 4 bits: one 16- or 32-bit scale for each group of neighbours, one small code for each value.

The first moment is signed and spread around zero, so its code is finer there (softsign companding); the second enters
the update as 1 / sqrt(v), so what is kept is a root of sqrt(v), which holds small values to a relative precision, and
code zero still means "a little": a v rounded down to 0 would make the update explode (arXiv 2309.01507).

    m = s * expand(q / Q),   q = round(Q * compand(m / s)),   s = max |m| of the group
    v = (s * ((q + 1) / (Q + 1))^2)^2,                        s = max sqrt(v) of the group
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Format:
    """bits of a code, elements that share a scale, and the dtype of the scale"""

    bits: int
    group: int
    scale: torch.dtype

    def code_shape(self, n: int) -> tuple[int]:
        return (n,) if self.bits == 8 else (-(-n // self.group) * self.group // 2,)

    def scale_shape(self, n: int) -> tuple[int]:
        return (-(-n // self.group),)


FORMATS = {"8bit": Format(8, 64, torch.float32), "4bit": Format(4, 128, torch.float32)}


def quantise_m(m: Tensor, form: Format) -> tuple[Tensor, Tensor]:
    """fp32 (n,) -> (codes, scales)"""
    x, scale = _normalise(m, form, m.abs())
    levels = 127 if form.bits == 8 else 7
    y = 2 * x / (1 + x.abs())
    q = torch.floor(y * levels + 0.5)
    return (_fold(q, m.numel()).to(torch.int8) if form.bits == 8 else _nibbles(q + 8)), scale


def dequantise_m(codes: Tensor, scale: Tensor, form: Format, n: int) -> Tensor:
    """(codes, scales) -> fp32 (n,)"""
    q = _unfold(codes.to(torch.float32), form.group) if form.bits == 8 else _halves(codes, form.group) - 8
    y = q / (127 if form.bits == 8 else 7)
    return _fold(y / (2 - y.abs()) * scale[:, None], n)


def quantise_v(v: Tensor, form: Format) -> tuple[Tensor, Tensor]:
    """fp32 (n,), v >= 0 -> (codes, scales)"""
    root = v.sqrt()
    x, scale = _normalise(root, form, root)
    top = 1 << form.bits
    q = torch.floor(x.sqrt() * top - 0.5).clamp_(0, top - 1)
    return (_fold(q, v.numel()).to(torch.uint8) if form.bits == 8 else _nibbles(q)), scale


def dequantise_v(codes: Tensor, scale: Tensor, form: Format, n: int) -> Tensor:
    q = _unfold(codes.to(torch.float32), form.group) if form.bits == 8 else _halves(codes, form.group)
    y = (q + 1) * (1.0 / (1 << form.bits))
    return _fold((y * y * scale[:, None]).square_(), n)


def _normalise(x: Tensor, form: Format, size: Tensor) -> tuple[Tensor, Tensor]:
    """(x / s in rows of a group, s): s is the group's largest `size`, rounded up when the scale is narrower than fp32."""
    scale = _unfold(size, form.group).amax(1)
    rows = _unfold(x, form.group) / torch.where(scale > 0, scale, 1.0)[:, None]
    return rows, scale.to(form.scale)


def _unfold(x: Tensor, group: int) -> Tensor:
    """(n,) -> (groups, group), the last one filled up with zeros"""
    missing = -x.numel() % group
    return (torch.nn.functional.pad(x, (0, missing)) if missing else x).view(-1, group)


def _fold(rows: Tensor, n: int) -> Tensor:
    return rows.reshape(-1)[:n]


def _nibbles(rows: Tensor) -> Tensor:
    """Codes 0..15 in rows of a group -> bytes: the first half of a group in the low bits, the second in the high."""
    low, high = rows.to(torch.uint8).chunk(2, 1)
    return (low | high << 4).reshape(-1)


def _halves(codes: Tensor, group: int) -> Tensor:
    packed = codes.view(-1, group // 2)
    return torch.cat([packed & 15, packed >> 4], 1).to(torch.float32)
