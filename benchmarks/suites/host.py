"""An optimizer step in RAM against a trip to the card: which of the two is faster where the bus is narrow?

    trip     bytes of weights and state / (bus * duplex)         both ways at once, so one way's bytes
    in RAM   max(seconds a weight and core / cores, 2 bytes / (bus * duplex))      16-bit gradients come, weights go

Ways: our reference on the format in which state is streamed, as it is and compiled, and torch's fused step on fp32 state,
whose gradient comes in 16 bits and whose weights leave in 16. One core is measured, in seconds that its thread computed, so
that other programs count little; that eight are eight times as fast is assumed, which is the best that can happen to the
processor, as are pieces that stay in its caches. The bus is four lanes of PCIe 3.0, as the planner books lanes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from trainer.kernels.adamw_lowbit import State, reference, scalars, step_

from trainer.plan import calibration, cards

from ..harness.timing import Options, guarded

CORES = 8
BUS = cards.X8 / 4 * 1e9  # of 16 lanes of PCIe 3.0, four
PIECE, WHOLE = 1 << 16, 1 << 22  # weights that are worked on at a time; torch's step goes over all of a unit's
WAYS = {  # weights, moments, compiled, how many at a time
    "24-bit weights, 8-bit moments, our reference": ("24bit", "8bit", False, PIECE),
    "24-bit weights, 8-bit moments, our reference compiled": ("24bit", "8bit", True, PIECE),
    "fp32 weights and moments, torch fused": ("fp32", "fp32", False, WHOLE),
}


def suite(options: Options) -> Iterator[dict]:
    """On the CPU whatever else is there; a compiled row needs a C++ compiler."""
    for name, (weights, moments, compiled, n) in WAYS.items():
        if not (options.tiny and compiled):
            state = _state(PIECE if options.tiny else n, weights, moments)
            update = _fused(state) if weights == "fp32" else _lowbit(state, compiled)
            yield guarded({"what": name}, partial(_row, state, update, options))


def _row(state: State, update: Callable[[], None], options: Options) -> dict:
    seconds = [each / state.n for each in _computed(update, options)]
    each, spread = statistics.median(seconds), (max(seconds) - min(seconds)) / 2
    streamed = _state(PIECE, "24bit", "8bit").nbytes / PIECE  # bytes a weight that a trip moves each way
    link = BUS * calibration.DUPLEX_SHARE.amount
    here, trip = max(each / CORES, 2 / link), streamed / link
    return {
        "nanoseconds_each_core": round(each * 1e9, 2),
        "spread": round(spread * 1e9, 2),
        "million_weights_per_second_each_core": round(1e-6 / each, 1),
        "bytes_per_weight": round(state.nbytes / state.n, 3),
        "nanoseconds_in_ram": round(here * 1e9, 2),
        "nanoseconds_of_the_trip": round(trip * 1e9, 2),
        "faster_than_the_trip": round(trip / here, 2),
    }


def _computed(update: Callable[[], None], options: Options) -> list[float]:
    """Seconds of one core, of each repeat."""
    threads, seconds = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for _ in range(options.warmup + options.repeats):
            began = time.thread_time()
            update()
            seconds.append(time.thread_time() - began)
    finally:
        torch.set_num_threads(threads)
    return seconds[options.warmup :]


def _state(n: int, weights: str, moments: str) -> State:
    def empty(shape: tuple[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    state = State.allocate(n, weights=weights, moments=moments, compute_dtype=torch.bfloat16, empty=empty)
    return state.initialise(torch.randn(n) * 0.03)


def _lowbit(state: State, compiled: bool) -> Callable[[], None]:
    t, grad = state.tensors, (torch.randn(state.n) * 1e-3).bfloat16()
    head = (t["weight"], t["correction"], t["m"], t["m_scale"], t["v"], t["v_scale"], grad, None, None, None)
    update = partial(reference, *head, scalars(1e-6, 0.9, 0.999, 0.0, 5, 0), state.moments, 0.9, 0.999, 1e-8)
    return torch.compile(update, dynamic=False) if compiled else update


def _fused(state: State) -> Callable[[], None]:
    arrived, leaves = (torch.randn(state.n) * 1e-3).bfloat16(), torch.empty(state.n, dtype=torch.bfloat16)

    def update() -> None:
        step_(state, arrived.float(), lr=1e-6, step=5)
        leaves.copy_(state.tensors["weight"])

    return update
