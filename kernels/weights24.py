"""A master weight in 24 bits: the 16-bit weight the model computes with, plus 8 correction bits beside it.

Read the bits of |x| as an integer: neighbouring floats are neighbouring integers, across exponents and down into the
subnormals. Round that integer to 24 bits, k; the weight is the nearest multiple of 256, the correction what is left:

    k = round(bits(|x|))      w16 = (k + 128) >> 8      correction = k - 256 w16  in [-128, 127]

so the correction counts 1/256 of the weight's ulp, the pair is exact on its grid (bf16: 15 fraction bits, relative
error <= 2^-16; fp16: 18), and the weight by itself is the rounded master. An optimizer's step rounds to that grid at
random (low bits are added before cutting; the mean of many roundings is the value), because even 24 bits lose updates
that are smooth: at lr 1e-6 rounding to nearest kept 81 % of what Adam did to bf16 + 8 bits. 16 bits by themselves can
be rounded at random too, with far more noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # the torch functions below need none of it
    triton = None

_INF = 0x7F800000  # fp32 bits of infinity
_REBIAS = 112 << 23  # fp32 and fp16 exponents differ by 112


def pack(x: Tensor, dtype: torch.dtype, random: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """fp32 -> (weight of `dtype`, int8 correction), to nearest, or up or down by `random` (int32, the low bits serve).

    Infinities and NaNs survive in the weight.
    """
    bits = x.view(torch.int32)
    magnitude = bits & 0x7FFFFFFF
    if dtype == torch.bfloat16:
        k = (magnitude + (0x7F + ((magnitude >> 8) & 1) if random is None else random & 0xFF)) >> 8
        largest, infinity, nan = 0x7F7F, 0x7F80, 0x7FC0
    else:
        k = _fp16_grid(x, magnitude, 18, random)
        largest, infinity, nan = 0x7BFF, 0x7C00, 0x7E00
    k = k.clamp_(max=(largest << 8) + 127)
    k = torch.where(magnitude < _INF, k, torch.where(magnitude == _INF, infinity << 8, nan << 8))
    weight = (k + 128) >> 8
    correction = (k - (weight << 8)).to(torch.int8)
    return _signed(weight, bits).view(dtype), correction


def unpack(weight: Tensor, correction: Tensor) -> Tensor:
    """(16-bit weight, int8 correction) -> the fp32 master, exactly."""
    bits = weight.view(torch.int16).to(torch.int32)
    k = ((bits & 0x7FFF) << 8) + correction
    sign = (bits < 0).to(torch.int32) << 31
    if weight.dtype == torch.bfloat16:
        return ((k << 8) | sign).view(torch.float32)
    value = torch.where(k < 1 << 18, k.to(torch.float32) * 2.0**-32, ((k << 5) + _REBIAS).view(torch.float32))
    value = torch.where(k < 0x7C00 << 8, value, weight.to(torch.float32).abs())
    return (value.view(torch.int32) | sign).view(torch.float32)


def round_randomly(x: Tensor, dtype: torch.dtype, random: Tensor) -> Tensor:
    """fp32 -> 16 bits, up or down with probabilities that make the mean right. `random`: int32, 32 random bits each."""
    bits = x.view(torch.int32)
    magnitude = bits & 0x7FFFFFFF
    if dtype == torch.bfloat16:
        k, largest = (magnitude + (random & 0xFFFF)) >> 16, 0x7F7F
    else:
        k, largest = _fp16_grid(x, magnitude, 10, random), 0x7BFF
    k = torch.where(magnitude < _INF, k.clamp_(max=largest), x.to(dtype).view(torch.int16).to(torch.int32) & 0x7FFF)
    return _signed(k, bits).view(dtype)


def random_bits(indices: Tensor, key: tuple[int, int]) -> Tensor:
    """32 random bits (as int32) for each element index: a pure function of (index, key), the same on every device."""
    x = _mix(indices.to(torch.int32) ^ _int32(key[0] & 0xFFFFFFFF))
    return _mix(x ^ _int32(key[1] & 0xFFFFFFFF))


def random_key(seed: int, step: int) -> tuple[int, int]:
    """Two 32-bit words from (seed, step). With two, the streams of two steps are not permutations of each other."""
    a = mix_int(seed & 0xFFFFFFFF) ^ (seed >> 32 & 0xFFFFFFFF)
    a = mix_int(a + 0x9E3779B9 & 0xFFFFFFFF)
    first = mix_int(a ^ mix_int(step & 0xFFFFFFFF))
    return first, mix_int(first + 0x85EBCA6B & 0xFFFFFFFF)


def mix_int(x: int) -> int:
    """The 32-bit finaliser `_mix` on a Python int (constants: "lowbias32" of C. Wellons' hash prospector)."""
    x = (x ^ x >> 16) * 0x7FEB352D & 0xFFFFFFFF
    x = (x ^ x >> 15) * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


def _mix(x: Tensor) -> Tensor:
    x = (x ^ (x >> 16 & 0xFFFF)) * 0x7FEB352D  # int32 products wrap; the masks make the shifts logical
    x = (x ^ (x >> 15 & 0x1FFFF)) * _int32(0x846CA68B)
    return x ^ (x >> 16 & 0xFFFF)


def _int32(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word


def _fp16_grid(x: Tensor, magnitude: Tensor, fraction_bits: int, random: Tensor | None) -> Tensor:
    """An integer next to |x| on fp16's number line with `fraction_bits` fraction bits: the nearest, or by `random`."""
    cut, shifted = 23 - fraction_bits, magnitude - _REBIAS
    if random is None:
        normal, unit = shifted + ((1 << (cut - 1)) - 1) + ((shifted >> cut) & 1), 0.5
    else:
        normal, unit = shifted + (random & ((1 << cut) - 1)), (random & 0xFFFF).to(torch.float32) * 2.0**-16
    tiny = torch.floor(x.abs().clamp(max=1.0) * 2.0 ** (14 + fraction_bits) + unit).to(torch.int32)
    return torch.where(magnitude < 113 << 23, tiny, normal >> cut)


def _signed(k: Tensor, bits: Tensor) -> Tensor:
    """15 magnitude bits with the sign of the fp32 `bits`, as int16."""
    return (k - ((bits < 0).to(torch.int32) << 15)).to(torch.int16)


if triton is not None:

    @triton.jit
    def mix_tile(x):
        x = (x ^ (x >> 16)) * 0x7FEB352D  # uint32
        x = (x ^ (x >> 15)) * 0x846CA68B
        return x ^ (x >> 16)

    @triton.jit
    def random_tile(indices, key0, key1):
        x = mix_tile(indices.to(tl.uint32) ^ key0.to(tl.uint32, bitcast=True))
        return mix_tile(x ^ key1.to(tl.uint32, bitcast=True)).to(tl.int32, bitcast=True)

    @triton.jit
    def widen_tile(w, FP16: tl.constexpr):
        """16 bits (int16) -> fp32"""
        return w.to(tl.float16 if FP16 else tl.bfloat16, bitcast=True).to(tl.float32)

    @triton.jit
    def unpack_tile(w, correction, FP16: tl.constexpr):
        """(weight bits int16, int8) -> fp32"""
        bits = w.to(tl.int32)
        k = ((bits & 0x7FFF) << 8) + correction.to(tl.int32)
        sign = bits & -0x80000000
        if FP16:
            magnitude = ((k << 5) + (112 << 23)).to(tl.float32, bitcast=True)
            magnitude = tl.where(k < (1 << 18), k.to(tl.float32) * (1.0 / 4294967296.0), magnitude)
            magnitude = tl.where(k < (0x7C00 << 8), magnitude, tl.abs(widen_tile(w, FP16)))
            bits = magnitude.to(tl.int32, bitcast=True)
        else:
            bits = k << 8
        return (bits | sign).to(tl.float32, bitcast=True)

    @triton.jit
    def pack_tile(x, random, FP16: tl.constexpr):
        """fp32 -> weight bits and correction, both int32; rounded up or down by `random`"""
        bits = x.to(tl.int32, bitcast=True)
        magnitude = bits & 0x7FFFFFFF
        if FP16:
            normal = (magnitude - (112 << 23) + (random & 31)) >> 5
            unit = (random & 0xFFFF).to(tl.float32) * (1.0 / 65536)
            tiny = tl.floor(tl.minimum(tl.abs(x), 1.0) * 4294967296.0 + unit).to(tl.int32)
            k = tl.minimum(tl.where(magnitude < (113 << 23), tiny, normal), (0x7BFF << 8) + 127)
            special = tl.where(magnitude == 0x7F800000, 0x7C00 << 8, 0x7E00 << 8)
        else:
            k = tl.minimum((magnitude + (random & 0xFF)) >> 8, (0x7F7F << 8) + 127)
            special = tl.where(magnitude == 0x7F800000, 0x7F80 << 8, 0x7FC0 << 8)
        k = tl.where(magnitude < 0x7F800000, k, special)
        weight = (k + 128) >> 8
        return weight | ((bits >> 31) << 15), k - (weight << 8)

    @triton.jit
    def round_randomly_tile(x, random, FP16: tl.constexpr):
        """fp32 -> weight bits (int32); infinities and NaNs as in `pack_tile`"""
        bits = x.to(tl.int32, bitcast=True)
        magnitude = bits & 0x7FFFFFFF
        if FP16:
            normal = (magnitude - (112 << 23) + (random & 0x1FFF)) >> 13
            unit = (random & 0xFFFF).to(tl.float32) * (1.0 / 65536)
            tiny = tl.floor(tl.minimum(tl.abs(x), 1.0) * 16777216.0 + unit).to(tl.int32)
            k = tl.minimum(tl.where(magnitude < (113 << 23), tiny, normal), 0x7BFF)
            special = tl.where(magnitude == 0x7F800000, 0x7C00, 0x7E00)
        else:
            k = tl.minimum((magnitude + (random & 0xFFFF)) >> 16, 0x7F7F)
            special = tl.where(magnitude == 0x7F800000, 0x7F80, 0x7FC0)
        return tl.where(magnitude < 0x7F800000, k, special) | ((bits >> 31) << 15)
