"""How much of what was learned survives in the weights: error of the accumulated update against fp32 master weights.

Part "format" follows section 2 of the study: weights N(0, 0.03), 800 updates of lr (0.15 sign + 0.5 noise), each stored in
the format under test; error = |dW - dW_fp32| / |dW_fp32|, and `kept` = the projection of dW on dW_fp32 (1: nothing lost on
average). Part "optimizer" runs the whole kernel on gradients that are plain, heavy-tailed (Student t, 3 degrees) or whose
scales are shuffled inside their groups after 300 steps, and compares with the same AdamW on fp32 state. A second moment of
rows and columns (harness/factored.py), which cannot be chosen, stands beside the formats that can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from trainer.kernels.adamw_lowbit import State, step_
from trainer.kernels.weights24 import pack, random_bits, random_key, round_randomly, unpack

from ..harness.factored import Adam, Factored
from ..harness.timing import Options

STEPS = 800
WIDTH = 256  # of a row of synthetic gradients
FACTORED = "24bit weights, 8bit first moment, factored second"
RATES = (1e-6, 2e-6, 5e-6)
# what the issue asks of the first part at lr 1e-6; the tests hold it
TARGET_24BIT = 0.15


def suite(options: Options) -> Iterator[dict]:
    """Runs on the CPU whatever the machine: rounding is the same everywhere, only its speed differs."""
    n = 1 << (11 if options.tiny else 14)
    for lr in RATES[:1] if options.tiny else RATES:
        yield from _formats(n, lr)
    for gradients in ("heavy",) if options.tiny else ("plain", "heavy", "shuffled"):
        yield from _optimizers(n, gradients)


def _formats(n: int, lr: float) -> Iterator[dict]:
    torch.manual_seed(0)
    start, sign = torch.randn(n) * 0.03, torch.randn(n).sign()
    stores = {
        "bf16, to nearest": _Rounded(start, torch.bfloat16, None),
        "bf16, stochastic": _Rounded(start, torch.bfloat16, 7),
        "fp16, stochastic": _Rounded(start, torch.float16, 7),
        "bf16 + bf16, Kahan": _Kahan(start),
        "bf16 + 8 bits, to nearest": _Pair(start, torch.bfloat16, None),
        "bf16 + 8 bits, ours": _Pair(start, torch.bfloat16, 7),
        "fp16 + 8 bits, ours": _Pair(start, torch.float16, 7),
    }
    begin = {name: store.value().double() for name, store in stores.items()}
    exact = start.double()
    for step in range(1, STEPS + 1):
        update = lr * (0.15 * sign + 0.5 * torch.randn(n))
        exact += update
        for store in stores.values():
            store.add(update, step)
    true = exact - start.double()
    more = {"lr": lr, "steps": STEPS, "weights": n}
    for name, store in stores.items():
        yield _row("format", name, store.value().double() - begin[name], true, bytes_per_weight=store.bytes, **more)
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float16, "fp16")):
        written = exact.float().to(dtype).double() - start.double()
        yield _row("format", f"fp32, exported as {name}", written, true, bytes_per_weight=2, **more)


def _row(part: str, name: str, moved: Tensor, true: Tensor, **more: object) -> dict:
    error = float((moved - true).norm() / true.norm())
    kept = float(moved @ true / (true @ true))
    return {"part": part, "what": name, "error": round(error, 4), "kept": round(kept, 4), **more}


class _Rounded:
    """16 bits by themselves; `seed` of stochastic rounding, None for rounding to nearest"""

    bytes = 2

    def __init__(self, start: Tensor, dtype: torch.dtype, seed: int | None):
        self.weight, self.seed, self.places = start.to(dtype), seed, torch.arange(start.numel())

    def add(self, update: Tensor, step: int) -> None:
        value, dtype = self.weight.float() + update, self.weight.dtype
        if self.seed is None:
            self.weight = value.to(dtype)
        else:
            self.weight = round_randomly(value, dtype, random_bits(self.places, random_key(self.seed, step)))

    def value(self) -> Tensor:
        return self.weight.float()


class _Pair:
    """our 24 bits, the last of them rounded at random with a `seed`"""

    bytes = 3

    def __init__(self, start: Tensor, dtype: torch.dtype, seed: int | None):
        self.pair, self.seed, self.places = pack(start, dtype), seed, torch.arange(start.numel())

    def add(self, update: Tensor, step: int) -> None:
        random = None if self.seed is None else random_bits(self.places, random_key(self.seed, step))
        self.pair = pack(unpack(*self.pair) + update, self.pair[0].dtype, random)

    def value(self) -> Tensor:
        return unpack(*self.pair)


class _Kahan:
    """bf16 weight and a bf16 compensation that remembers what the weight could not take"""

    bytes = 4

    def __init__(self, start: Tensor):
        self.weight, self.rest = start.bfloat16(), torch.zeros_like(start, dtype=torch.bfloat16)

    def add(self, update: Tensor, step: int) -> None:
        self.rest = (self.rest.float() + update).bfloat16()
        before = self.weight
        self.weight = (before.float() + self.rest.float()).bfloat16()
        self.rest = (self.rest.float() - (self.weight.float() - before.float())).bfloat16()

    def value(self) -> Tensor:
        return self.weight.float()


COMBINATIONS = (
    ("fp32", "8bit"),
    ("24bit", "fp32"),
    ("24bit", "8bit"),
    ("fp32", "4bit"),
    ("24bit", "4bit"),
    ("16bit_sr", "8bit"),
)


def _optimizers(n: int, kind: str) -> Iterator[dict]:
    lr, gradient = 1e-6, _gradients(n, kind)
    start = torch.randn(n, generator=torch.Generator().manual_seed(3)) * 0.03
    states = {"exact": _state(start, "fp32", "fp32")} | {
        f"{weights} weights, {moments} moments": _state(start, weights, moments) for weights, moments in COMBINATIONS
    }
    states[FACTORED] = _state(start, "24bit", "8bit")
    factored = Factored([(0, torch.Size((n // WIDTH, WIDTH)))])
    begin = {name: state.master().double() for name, state in states.items()}
    peer = _bitsandbytes(start, lr)
    for step in range(1, STEPS + 1):
        g = gradient(step)
        for name, state in states.items():
            if name == FACTORED:
                factored.step_(state, g, Adam(lr, step), seed=11)
            else:
                step_(state, g, lr=lr, step=step, seed=11)
        if peer is not None:
            peer[0].grad = g.clone()
            peer[1].step()
    true = states.pop("exact").master().double() - begin["exact"]
    more = {"lr": lr, "steps": STEPS, "weights": n, "gradients": kind}
    for name, state in states.items():
        moved = state.master().double() - begin[name]
        held = 3 * n + factored.nbytes if name == FACTORED else state.nbytes
        yield _row("optimizer", name, moved, true, bytes_per_weight=round(held / n, 3), **more)
    if peer is not None:
        moved = peer[0].detach().double() - start.double()
        per_weight = 4 + 2 * (1 + 4 / 256)
        name = "bitsandbytes AdamW8bit, fp32 weights"
        yield _row("optimizer", name, moved, true, bytes_per_weight=round(per_weight, 3), **more)


def _state(start: Tensor, weights: str, moments: str) -> State:
    def empty(shape: tuple[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    state = State.allocate(start.numel(), weights=weights, moments=moments, compute_dtype=torch.bfloat16, empty=empty)
    return state.initialise(start)


def _bitsandbytes(start: Tensor, lr: float) -> tuple[torch.nn.Parameter, torch.optim.Optimizer] | None:
    try:
        import bitsandbytes
    except ImportError:
        return None
    parameter = torch.nn.Parameter(start.clone())
    return parameter, bitsandbytes.optim.AdamW8bit([parameter], lr=lr, weight_decay=0.0, min_8bit_size=1)


def _gradients(n: int, kind: str) -> Callable[[int], Tensor]:
    """Drift 0.15 and noise 0.5 times a scale that differs between rows of WIDTH weights and between weights."""
    source = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source)

    rows, each = normal(n // WIDTH, 1).exp(), (0.5 * normal(n // WIDTH, WIDTH)).exp()
    scale = (1e-5 * rows * each).flatten()
    later = (1e-5 * rows * each[:, torch.randperm(WIDTH, generator=source)]).flatten() if kind == "shuffled" else scale
    sign = normal(n).sign()

    def gradient(step: int) -> Tensor:
        noise = normal(n)
        if kind == "heavy":
            noise = noise / normal(3, n).square().mean(0).sqrt()
        return (later if step > 300 else scale) * (0.15 * sign + 0.5 * noise)

    return gradient
