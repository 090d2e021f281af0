"""Planned against measured bytes of one pair step, technique by technique. The word
`simulate` adds plans of the real-size model, which need no card and are not measured; `whole` measures a whole job
on a CPU instead (harness/footprint.py).

On a card the measurement is torch's `max_memory_allocated` for a real-size model with random weights; on a CPU it is the
allocator's own log for a tiny one, card and host told apart by who asked. The plan never sees the measurement: it is the
same code run on meta tensors. A card also says what torch reserves for a step when nothing limits it, and with the word `least`
the least that it may be limited to and still takes the step: the difference to what was measured is what the allocator
cannot use. Further words name cases (`case=all streamed`).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile, record_function

from trainer import memory
from trainer.machine import host
from trainer.models import family
from trainer.models.base import Parts
from trainer.objective.loss import Objective
from trainer.plan import rehearse
from trainer.policy import Policy
from trainer.step.engine import Engine

from ..harness import footprint, work
from ..harness.timing import Options, guarded

MIXED = Policy(weights="24bit", moments="8bit", compute=torch.bfloat16, recompute_kernels=True, channels_last=True)
CASES: dict[str, Policy] = {
    "all kept": MIXED,
    "gradients in RAM": replace(MIXED, gradients="ram"),
    "selective": replace(MIXED, checkpointing="selective", gradients="ram"),
    "blocks": replace(MIXED, checkpointing="blocks", gradients="ram"),
    "4-bit moments": replace(MIXED, checkpointing="blocks", gradients="ram", moments="4bit"),
    "boundaries in RAM": replace(MIXED, checkpointing="blocks", gradients="ram", boundaries="ram"),
    "state streamed": replace(MIXED, checkpointing="blocks", gradients="ram", stream="state"),
    "state streamed, early updates": replace(MIXED, gradients="ram", stream="state", early_updates=True, reach_mb=512),
    "all streamed": replace(MIXED, checkpointing="blocks", gradients="ram", boundaries="ram", stream="all"),
}
# What these allocate and free within themselves on a CPU is no business of a card's: kernels of ours have no temporaries
# there, a convolution's are the workspaces that the planner books apart, the backward of its attention has two of the size
# of a gradient, and where fp32 meets 16 bits (the norm of
# gradients, their sum over micro-batches) a card converts as it reads.
ATTENTION = "aten::_scaled_dot_product_flash_attention_for_cpu_backward"
OPAQUE = ("trainer::", "aten::convolution", ATTENTION, "aten::_foreach_norm", "aten::add_")
LIMITS = (
    0.5,
    0.3,
    0.2,
    0.15,
    0.12,
    0.1,
    0.08,
    0.06,
    0.04,
    0.02,
    0.0,
)  # of a step, beyond what it has allocated at its peak
HOST = "host memory"
ON_HOST = (HOST, "aten::linspace")  # the latter is the objective's table of noise levels, which a run keeps in RAM


def suite(options: Options) -> Iterator[dict]:
    if "whole" in options.words:
        yield from footprint.rows(options)
        return
    named = [word.partition("=")[2] for word in options.words if word.startswith("case=")]
    cases = {name: CASES[name] for name in named or CASES}
    for name, policy in cases.items():
        yield guarded({"model": options.model, "case": name}, partial(row, options, name, policy))
    if "simulate" in options.words:
        for name, policy in cases.items():
            yield simulated(options, name, policy)


def row(options: Options, name: str, policy: Policy) -> dict:
    real = options.device.type == "cuda" and not options.tiny
    made = family(options.model)
    shapes = rehearse.Shapes((made.resolution, made.resolution) if real else (256, 256))
    with torch.device("meta"):
        parts = made.meta() if real else made.tiny()
    with rehearse.engine(parts, policy, text=False) as engine:
        seen = rehearse.train(parts, engine, shapes, text=False)
    more = {}
    if real:
        planned = seen.card_peak
        more = on_card(made, policy, shapes, options.device, "least" in options.words)
        measured = more.pop("measured_bytes")
    else:
        planned, measured = seen.card_peak - seen.card_kept, on_cpu(made, policy, shapes).card_peak
    row = {"model": options.model, "tiny": not real, "case": name, "planned_bytes": planned, "measured_bytes": measured,
           "off_percent": round(100 * (planned - measured) / measured, 2), "simulation_seconds": round(seen.seconds, 2)}  # fmt: skip
    return row | more


def simulated(options: Options, name: str, policy: Policy) -> dict:
    """The plan alone, for a real-size model (with --tiny a tiny one): no byte of it is measured."""
    made = family(options.model)
    shapes = rehearse.Shapes((256, 256) if options.tiny else (made.resolution, made.resolution))
    with torch.device("meta"):
        parts = made.tiny() if options.tiny else made.meta()
    with rehearse.engine(parts, policy, text=False) as engine:
        seen = rehearse.train(parts, engine, shapes, text=False)
    return {"model": options.model, "tiny": options.tiny, "case": f"{name}, simulated only", "pixels": shapes.size[0],
            "planned_bytes": seen.card_peak, "planned_host_bytes": seen.host_peak,
            "tflop": round(seen.flops / 1e12, 3)}  # fmt: skip


def on_card(made, policy: Policy, shapes: rehearse.Shapes, device: torch.device, limit: bool = False) -> dict:
    """Bytes allocated and reserved at the peak of the third step of a real-size model with random weights, and with
    `limit` the least that torch may be limited to (`least`)."""
    gc.collect()  # the case before
    step, _ = real_step(made, work.real(made.name, "denoiser", device=device), policy, shapes, device)
    for _ in range(2):
        step()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    step()
    torch.cuda.synchronize(device)
    took = time.perf_counter() - began
    measured, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    found = {"measured_bytes": measured, "reserved_bytes": reserved, "seconds": round(took, 3)}
    return found | (least(step, measured, device) if limit else {})


def least(step: Callable[[], object], measured: int, device: torch.device) -> dict:
    """The least of the limits LIMITS under which two steps come to their end, and the seconds of the second. A step that
    found no memory leaves an engine that cannot go on, so the limits fall until one does."""
    number = torch.cuda.current_device() if device.index is None else device.index  # torch's limit is of a number alone
    total, found = torch.cuda.get_device_properties(number).total_memory, {}
    try:
        for share in LIMITS:
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction((1 + share) * measured / total, number)
            step()
            torch.cuda.synchronize(device)
            began = time.perf_counter()
            step()
            torch.cuda.synchronize(device)
            found = {"least_bytes": int((1 + share) * measured), "least_seconds": round(time.perf_counter() - began, 3)}
    except RuntimeError:  # torch's own words, or those of a library that found no workspace
        pass
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, number)
    return found


def on_cpu(made, policy: Policy, shapes: rehearse.Shapes) -> Allocated:
    """What the first step of a tiny model allocates; with the second, where updates wait for it."""
    steps = [real_step(made, made.tiny(), policy, shapes, torch.device("cpu"))[0] for _ in range(2)]
    steps[0]()  # of another engine: the first call of all allocates what stays in the process
    return allocator_log(lambda: [steps[1]() for _ in range(1 + policy.deferred)])


def real_step(
    made, parts: Parts, policy: Policy, shapes: rehearse.Shapes, device: torch.device
) -> tuple[Callable[[], object], Engine]:
    memory.prepare(parts.denoiser, policy, device)
    engine = Engine(made.units(parts), policy, device)
    micro = [rehearse.filled(rehearse.batch(parts, shapes, text=False), device) for _ in range(shapes.accumulation)]
    objective = Objective(parts.noise())
    return lambda: rehearse.run_step(engine, micro, objective, shapes.accumulation), engine


@dataclass(frozen=True)
class Allocated:
    """Largest sums of live bytes, and what was left at the end. Host memory is what was asked for through machine/host.py;
    all else is the card's."""

    card_peak: int
    host_peak: int
    card_left: int
    host_left: int


def allocator_log(step: Callable[[], object]) -> Allocated:
    """What the CPU allocator handed out during `step`, read from its own log."""
    # a CPU's library for products reorders 16-bit operands into buffers of its own: torch's plain kernels do not
    plain = torch.backends.mkldnn.flags(enabled=False, allow_tf32=False)
    with _named_host(), plain, profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events: list[tuple[int, int, int, int, bool]] = []  # time, bytes, address, opaque operator (0: none), on the host

    def walk(node, kernel: int, on_host: bool) -> None:
        if node.tag == _EventType.Allocation:
            events.append((node.start_time_ns, node.extra_fields.alloc_size, node.extra_fields.ptr, kernel, on_host))
        on_host = on_host or node.name in ON_HOST
        for child in node.children:
            walk(child, node.id if node.name.startswith(OPAQUE) and not kernel else kernel, on_host)

    for root in profiler.profiler.kineto_results.experimental_event_tree():
        walk(root, 0, False)
    events.sort(key=lambda event: event[0])
    born: dict[int, int] = {}  # address -> index of the event that handed it out
    asked: dict[int, bool] = {}  # index -> whether its bytes are the host's
    hidden = set()
    for index, (_, size, address, kernel, on_host) in enumerate(events):
        if size > 0:
            born[address], asked[index] = index, on_host
        elif address in born:
            start = born.pop(address)
            asked[index] = asked[start]
            if kernel and events[start][3] == kernel:
                hidden |= {start, index}
    live, peak = {False: 0, True: 0}, {False: 0, True: 0}
    for index, on_host in asked.items():  # what dies here but was there before is not the step's
        if index not in hidden:
            live[on_host] += events[index][1]
            peak[on_host] = max(peak[on_host], live[on_host])
    return Allocated(peak[False], peak[True], live[False], live[True])


@contextmanager
def _named_host() -> Iterator[None]:
    """Requests for host memory carry a name in the profiler's log."""
    empty = host.empty

    def named(*args) -> Tensor:
        with record_function(HOST):
            return empty(*args)

    host.empty = named
    try:
        yield
    finally:
        host.empty = empty
