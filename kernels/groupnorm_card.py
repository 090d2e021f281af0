"""The six kernels of GroupNorm with SiLU, as they run on a card; groupnorm_silu.py launches them and says what they compute.

A program takes a tile of positions and channels of one sample, whichever way x lies. What a tile found of a channel is written
to (2, N, tiles, C) in fp32 and gathered by one program a group, always in the same order: equal inputs give equal bits.
"""

from __future__ import annotations

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton, no CUDA path: the reference works instead
    triton = None


if triton is not None:

    @triton.jit
    def _tile(area, channels, stride_c, stride_a, BA: tl.constexpr, BC: tl.constexpr):
        """channels, offsets and mask of this program's (positions, channels) tile inside one sample"""
        a = tl.program_id(0) * BA + tl.arange(0, BA)
        c = tl.program_id(1) * BC + tl.arange(0, BC)
        mask = (a < area)[:, None] & (c < channels)[None, :]
        return c, a[:, None] * stride_a + c[None, :] * stride_c, mask

    @triton.jit
    def statistics(x, tile, area, channels, stride_c, stride_a, BA: tl.constexpr, BC: tl.constexpr):
        """mean and sum of squared deviations of every channel within a tile -> tile (2, N, tiles, C)"""
        n = tl.program_id(2).to(tl.int64)
        c, offsets, mask = _tile(area, channels, stride_c, stride_a, BA, BC)
        values = tl.load(x + n * area * channels + offsets, mask=mask, other=0.0).to(tl.float32)
        count = tl.minimum(area - tl.program_id(0) * BA, BA).to(tl.float32)
        mean = tl.sum(values, 0) / count
        away = tl.where(mask, values - mean[None, :], 0.0)
        at = (n * tl.num_programs(0) + tl.program_id(0)) * channels + c
        tl.store(tile + at, mean, mask=c < channels)
        half = tl.num_programs(2) * tl.num_programs(0) * channels
        tl.store(tile + half + at, tl.sum(away * away, 0), mask=c < channels)

    @triton.jit
    def merge(
        tile,
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
        half = tl.num_programs(0) * tiles * channels
        c = tl.arange(0, BC)
        total = tl.zeros((BT, BC), tl.float32)
        for first in range(0, tiles, BT):
            t = first + tl.arange(0, BT)
            mask = (t < tiles)[:, None] & (c < WIDTH)[None, :]
            at = (n * tiles + t)[:, None] * channels + g * WIDTH + c[None, :]
            count = tl.minimum(area - t * BA, BA).to(tl.float32)
            total += tl.load(tile + at, mask=mask, other=0.0) * count[:, None]
        center = tl.sum(tl.sum(total, 1), 0) / (area * WIDTH)
        total = tl.zeros((BT, BC), tl.float32)
        for first in range(0, tiles, BT):
            t = first + tl.arange(0, BT)
            mask = (t < tiles)[:, None] & (c < WIDTH)[None, :]
            at = (n * tiles + t)[:, None] * channels + g * WIDTH + c[None, :]
            count = tl.minimum(area - t * BA, BA).to(tl.float32)
            away = tl.load(tile + at, mask=mask, other=0.0) - center
            total += tl.where(mask, tl.load(tile + half + at, mask=mask, other=0.0) + away * away * count[:, None], 0.0)
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
    def forward(
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
    def backward_sums(
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
    def gather(
        sums,
        weight,
        pull,
        dw,
        db,
        batch,
        tiles,
        area,
        channels,
        WIDTH: tl.constexpr,
        BC: tl.constexpr,
        BT: tl.constexpr,
    ):
        """one program a group: `pull` of every sample, and dw and db of the group's WIDTH channels"""
        g, groups, c = tl.program_id(0), tl.num_programs(0), tl.arange(0, BC)
        inside, channel, half = c < WIDTH, g * WIDTH + c, batch * tiles * channels
        w = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
        all_dz = tl.zeros((BC,), tl.float32)
        all_dzx = tl.zeros((BC,), tl.float32)
        for n in range(0, batch):
            dz = tl.zeros((BT, BC), tl.float32)
            dzx = tl.zeros((BT, BC), tl.float32)
            for first in range(0, tiles, BT):
                t = first + tl.arange(0, BT)
                mask = (t < tiles)[:, None] & inside[None, :]
                at = (n * tiles + t)[:, None] * channels + channel[None, :]
                dz += tl.load(sums + at, mask=mask, other=0.0)
                dzx += tl.load(sums + half + at, mask=mask, other=0.0)
            each, twist = tl.sum(dz, 0), tl.sum(dzx, 0)
            all_dz += each
            all_dzx += twist
            tl.store(pull + n * groups + g, tl.sum(w * each, 0) / (area * WIDTH))
            tl.store(pull + (batch + n) * groups + g, tl.sum(w * twist, 0) / (area * WIDTH))
        tl.store(db + channel, all_dz, mask=inside)
        tl.store(dw + channel, all_dzx, mask=inside)

    @triton.jit
    def backward(
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
