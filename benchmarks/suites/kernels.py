"""Our kernels beside what they replace: time, bytes that have to move, and the fraction of a plain copy's bandwidth.

A kernel that only moves data is done when it runs at the speed of a copy, so that is measured on the spot, on the same
device, with a buffer too large for the caches. "ours" is Triton on CUDA; on a CPU it is the reference in torch itself,
whose rows say how fast the fallback is, not how good the kernel is. torch.compile joins on CUDA, where it is the rival.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from trainer.kernels.adamw_lowbit import State, reference, scalars, step_
from trainer.kernels.geglu import geglu
from trainer.kernels.groupnorm_silu import groupnorm_silu
from trainer.kernels.layernorm import layernorm

from trainer.memory import attention

from ..harness.timing import Options, Timed, guarded, timed

FORMATS = (("24bit", "8bit"), ("24bit", "4bit"), ("16bit_sr", "8bit"), ("fp32", "fp32"))


def suite(options: Options) -> Iterator[dict]:
    bench = Bench(options)
    yield {"kernel": "copy", "who": "torch", "moved_bytes": bench.copied, "gb_per_second": bench.copy / 1e9}
    yield from _adamw(bench)
    yield from _norms(bench)
    if bench.cuda:
        yield from _attention(bench)


class Bench:
    """Times calls and relates them to the copy bandwidth of this device."""

    def __init__(self, options: Options):
        self.options, self.device = options, options.device
        self.cuda = self.device.type == "cuda"
        self.small = options.tiny or not self.cuda
        self.dtype = torch.bfloat16
        source = torch.ones(1 << (26 if self.small else 29), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        self.copied = 2 * source.numel()
        self.copy = self.copied / min(
            self.seconds(lambda: target.copy_(source)).seconds
        )  # what this device can do at best

    def seconds(self, call: Callable[[], object]) -> Timed:
        """Of one call; on CUDA many calls a measurement, so that launching does not count."""
        calls = 20 if self.cuda else 1

        def several() -> None:
            for _ in range(calls):
                call()

        measured = timed(several, self.options)
        return replace(measured, seconds=tuple(seconds / calls for seconds in measured.seconds))

    def row(self, kernel: str, who: str, call: Callable[[], object], moved: int, **more: object) -> dict:
        """moved: bytes that this way of computing must read and write at least"""

        def measure() -> dict:
            measured = self.seconds(call)
            return {
                "microseconds": round(measured.median * 1e6, 1), "spread": round(measured.spread * 1e6, 1),
                "moved_bytes": moved, "gb_per_second": moved / measured.median / 1e9,
                "of_copy": round(moved / measured.median / self.copy, 4), **more,
            }  # fmt: skip

        return guarded({"kernel": kernel, "who": who}, measure)


def _adamw(bench: Bench) -> Iterator[dict]:
    n = 1 << (17 if bench.small else 25)
    start = torch.randn(n, device=bench.device) * 0.03
    grad = torch.randn(n, device=bench.device) * 1e-3
    clip, skip = torch.ones((), device=bench.device), torch.zeros((), device=bench.device)

    def empty(shape: tuple[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=bench.device)

    for weights, moments in FORMATS[:1] if bench.options.tiny else FORMATS:
        state = State.allocate(n, weights=weights, moments=moments, compute_dtype=bench.dtype, empty=empty)
        t, g = state.initialise(start).tensors, grad.to(state.tensors["weight"].dtype)
        moved = 2 * state.nbytes + g.nbytes
        name = f"adamw {weights} {moments}"
        ours = partial(step_, state, g, lr=1e-6, step=5, clip_scale=clip, skip=skip)
        yield bench.row(name, "ours", ours, moved, bytes_per_weight=round(moved / n, 2))
        if bench.cuda:
            head = (t["weight"], t.get("correction"), t["m"], t.get("m_scale"), t["v"], t.get("v_scale"), g, clip, skip)
            words = scalars(1e-6, 0.9, 0.999, 0.0, 5, 0)
            plain = partial(reference, *head, None, words, moments, 0.9, 0.999, 1e-8)
            yield bench.row(name, "reference", plain, moved, bytes_per_weight=round(moved / n, 2))

    parameter = torch.nn.Parameter(start.clone())
    parameter.grad = grad
    fp32 = 4 * (2 + 2 + 2 + 1)
    rivals = {"torch fused, fp32": (torch.optim.AdamW([parameter], lr=1e-6, fused=True), fp32)}
    try:
        import bitsandbytes
    except ImportError:
        bitsandbytes = None
    if bitsandbytes is not None:
        other = torch.nn.Parameter(start.clone())
        other.grad = grad
        rivals["bitsandbytes 8-bit, fp32 weights"] = (
            bitsandbytes.optim.AdamW8bit([other], lr=1e-6),
            12 + 4 * (1 + 4 / 256),
        )
    for who, (optimizer, per_weight) in rivals.items():
        # the model computes with bf16 weights, which ours writes and these leave to a cast: 6 bytes more
        yield bench.row("adamw", who, optimizer.step, int(n * per_weight), bytes_per_weight=round(per_weight + 6, 2))


def _norms(bench: Bench) -> Iterator[dict]:
    side = 16 if bench.small else 64
    channels = 64 if bench.small else 320
    x = torch.randn(2, channels, side, side, device=bench.device, dtype=bench.dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    tokens = torch.randn(2, side * side, channels, device=bench.device, dtype=bench.dtype)
    wide = torch.randn(2, side * side, 8 * channels, device=bench.device, dtype=bench.dtype)
    w, b = (torch.randn(channels, device=bench.device, dtype=bench.dtype) for _ in range(2))

    def eager_group_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.silu(F.group_norm(x, 32, w, b))

    def eager_layer_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.layer_norm(x, (channels,), w, b)

    def eager_geglu(x: Tensor) -> Tensor:
        h, g = x.chunk(2, -1)
        return h * F.gelu(g)

    cases = (
        (
            "groupnorm+silu, channels last",
            lambda x, w, b: groupnorm_silu(x, w, b, 32),
            eager_group_norm,
            (x, w, b),
            1.0,
        ),
        ("layernorm", layernorm, eager_layer_norm, (tokens, w, b), 1.0),
        ("geglu", geglu, eager_geglu, (wide,), 0.5),
    )
    for name, ours, eager, inputs, output in cases:
        inputs = [tensor.requires_grad_() for tensor in inputs]
        # forward reads x and writes y; backward reads x and dy and writes dx
        moved = int(inputs[0].nbytes * (3 + 2 * output))
        ways = {"ours": ours, "eager": eager} | ({"torch.compile": torch.compile(eager)} if bench.cuda else {})
        for who, function in ways.items():
            kept = _kept(function, inputs)
            pull = torch.randn_like(function(*inputs))

            def call(function: Callable = function, inputs: list = inputs, pull: Tensor = pull) -> None:
                torch.autograd.grad(function(*inputs), inputs, pull)

            yield bench.row(f"{name}, both ways", who, call, moved, kept_bytes=kept)


def _kept(function: Callable, inputs: list[Tensor]) -> int:
    """Bytes that stay for backward beyond the inputs."""
    known, kept = {tensor.untyped_storage().data_ptr() for tensor in inputs}, {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function(*inputs)
    return sum(size for place, size in kept.items() if place not in known)


def _attention(bench: Bench) -> Iterator[dict]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    for heads, tokens, keys, size in (
        (8, 4096, 4096, 40),
        (8, 4096, 77, 40),
        (8, 1024, 1024, 80),
        (10, 4096, 4096, 64),
    ):
        shapes = ((2, tokens, heads, size), (2, keys, heads, size), (2, keys, heads, size))
        q, k, v = (torch.randn(s, device="cuda", dtype=bench.dtype).transpose(1, 2).requires_grad_() for s in shapes)
        pull = torch.randn_like(q)
        for kernel in (*attention.ORDER, SDPBackend.MATH):

            def call(kernel: SDPBackend = kernel, inputs: tuple = (q, k, v), pull: Tensor = pull) -> None:
                with sdpa_kernel(kernel):
                    torch.autograd.grad(attention.attend(*inputs), inputs, pull)

            name = f"attention {tokens} x {keys}, {heads} heads of {size}, both ways"
            try:
                call()
            except RuntimeError as refusal:  # this kernel does not take this shape on this card
                yield {"kernel": name, "who": attention.NAMES[kernel], "refused": str(refusal).splitlines()[0][:80]}
                continue
            measured = bench.seconds(call)
            flops = 2 * 2 * 2 * heads * tokens * keys * size * 3.5
            row = {"kernel": name, "who": attention.NAMES[kernel], "microseconds": round(measured.median * 1e6, 1)}
            row["spread"] = round(measured.spread * 1e6, 1)
            yield row | {"tflop_per_second": round(flops / measured.median / 1e12, 1)}
