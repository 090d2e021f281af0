"""Where a step's time goes: the operators that cost most, how long the device waits for the host, and the roofline.

    roofline = max(FLOPs / peak, bytes / bandwidth)      achieved = roofline / measured

FLOPs and bytes are counted on the operators that ran. On a card the peaks are published rates of that card; on a CPU they
are measured on the spot (one large matrix product, one large copy).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from trainer import memory
from trainer.plan import cards
from trainer.plan.simulate import Tracker
from trainer.policy import Policy

from ..harness import work
from ..harness.timing import Options, timed

TOP = 12


def suite(options: Options) -> Iterator[dict]:
    device = options.device
    policy = (
        Policy(recompute_kernels=True)
        if device.type == "cpu"
        else Policy(
            weights="24bit",
            moments="8bit",
            compute=torch.bfloat16,
            recompute_kernels=True,
            channels_last=True,
        )
    )
    step = stepper(options, policy)
    measured = timed(step, options)
    seconds = measured.row(2)["seconds"]

    with (tracker := Tracker(device.type)):
        step()
    counted = tracker.watched()
    flops_peak, bandwidth = peaks(device)
    roofline = max(counted.flops / flops_peak, (counted.moved + counted.matmul_moved) / bandwidth)
    yield (
        {"what": "step", "model": options.model}
        | measured.row(2)
        | {
            "operators": counted.operators,
            "tflop": counted.flops / 1e12,
            "moved_bytes": counted.moved + counted.matmul_moved,
            "roofline_seconds": roofline,
            "achieved": roofline / seconds,
        }
    )

    if device.type == "cuda":
        replayed = timed(stepper(options, replace(policy, cuda_graphs=True)), options, recorded=True).row(2)
        yield {"what": "step, replayed as a CUDA graph", "model": options.model} | replayed

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as recorded:
        started = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        wall = time.perf_counter() - started
    cuda = device.type == "cuda"  # a CPU does not wait for itself: what is left there is Python between operators
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    # kernels stand in the list once as themselves and once in the operator that launched them
    events = [event for event in recorded.key_averages() if event.device_type == DeviceType.CPU]
    events.sort(key=lambda event: getattr(event, key), reverse=True)
    spent = sum(getattr(event, key) for event in events) / 1e6
    if cuda:  # profiling slows the host down, not the kernels: hold them against the step as it was timed
        kernels = [event.time_range for event in recorded.events() if event.device_type == DeviceType.CUDA]
        busy, wall = covered([(each.start, each.end) for each in kernels]) / 1e6, seconds
    else:
        busy = spent
    yield {"what": "device busy" if cuda else "inside operators", "seconds": busy, "share": busy / wall}
    rest = "waiting for the host" if cuda else "between operators"
    yield {"what": rest, "seconds": max(wall - busy, 0.0), "share": max(1 - busy / wall, 0.0)}
    for event in events[:TOP]:
        own = getattr(event, key) / 1e6
        yield {"what": event.key, "calls": event.count, "seconds": own, "share": own / spent}


def stepper(options: Options, policy: Policy) -> Callable[[], Tensor]:
    """A step of the engine on one pair, with a model of its own."""
    made = work.parts(options, "denoiser", device=options.device)
    memory.prepare(made.denoiser, policy, options.device)
    batches = [work.batch(made, work.side(options, made), 1, options.device)]
    return work.stepper(made, policy, batches, options.device)[1]


def covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of (start, end): kernels and copies on several streams overlap."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total


def peaks(device: torch.device) -> tuple[float, float]:
    """(FLOP/s, bytes/s): published for a card that cards.py knows, else measured here."""
    if device.type == "cuda" and (card := cards.match(torch.cuda.get_device_name(device))) is not None:
        return card.tflops * 1e12, card.bandwidth * 1e9
    size = 1024 if device.type == "cpu" else 8192
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    a = torch.randn(size, size, device=device, dtype=dtype)
    big = torch.empty(2**26, device=device)
    product, copy = _best(lambda: a @ a, device), _best(lambda: big.clone(), device)
    return 2 * size**3 / product, 2 * big.numel() * 4 / copy


def _best(call, device: torch.device) -> float:
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
