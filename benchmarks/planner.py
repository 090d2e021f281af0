"""Planned against measured bytes of one pair step, technique by technique. The word
`simulate` adds plans of the real-size model, which need no card and are not measured.

On a card the measurement is torch's `max_memory_allocated` for a real-size model with random weights; on a CPU it is the
allocator's own log for a tiny one. The plan never sees the measurement: it is the same code run on meta tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from .. import memory, rehearse
from ..engine import Engine
from ..models import family
from ..models.base import Parts
from ..policy import Policy
from .harness import Options

MIXED = Policy(weights="24bit", moments="8bit", compute=torch.bfloat16, recompute_kernels=True, channels_last=True)
CASES: dict[str, Policy] = {
    "all kept": MIXED,
    "gradients in RAM": replace(MIXED, gradients="ram"),
    "selective": replace(MIXED, checkpointing="selective", gradients="ram"),
    "blocks": replace(MIXED, checkpointing="blocks", gradients="ram"),
    "4-bit moments": replace(MIXED, checkpointing="blocks", gradients="ram", moments="4bit"),
    "boundaries in RAM": replace(MIXED, checkpointing="blocks", gradients="ram", boundaries="ram"),
    "state streamed": replace(MIXED, checkpointing="blocks", gradients="ram", stream="state"),
    "all streamed": replace(MIXED, checkpointing="blocks", gradients="ram", boundaries="ram", stream="all"),
}
OPAQUE = ("trainer::", "aten::convolution")
# on a CPU host memory is the card's memory, so only what leaves nothing there can be compared
ON_CPU = ("all kept",)


def suite(options: Options) -> Iterator[dict]:
    real = options.device.type == "cuda" and not options.tiny
    for name, policy in CASES.items():
        if not real:
            if name not in ON_CPU:
                continue
            policy = replace(policy, channels_last=False)
        yield row(options, name, policy)
    if "simulate" in options.words:
        for name, policy in CASES.items():
            yield simulated(options, name, policy)


def row(options: Options, name: str, policy: Policy) -> dict:
    real = options.device.type == "cuda" and not options.tiny
    made = family(options.model)
    shapes = rehearse.Shapes((made.resolution, made.resolution) if real else (256, 256))
    with torch.device("meta"):
        parts = made.meta() if real else made.tiny()
    with rehearse.engine(parts, policy, text=False) as engine:
        seen = rehearse.train(parts, engine, shapes, text=False)
    planned, measured = (
        (seen.card_peak, on_card(made, policy, shapes, options.device))
        if real
        else (seen.card_peak - seen.card_kept, on_cpu(made, policy, shapes))
    )
    return {"model": options.model, "tiny": not real, "case": name, "planned_bytes": planned, "measured_bytes": measured,
            "off_percent": round(100 * (planned - measured) / measured, 2), "simulation_seconds": round(seen.seconds, 2)}  # fmt: skip


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


def on_card(made, policy: Policy, shapes: rehearse.Shapes, device: torch.device) -> int:
    """Bytes allocated at the peak of the second step of a real-size model with random weights."""
    with device:
        parts = made._build("random", {})
    parts.vae.to("cpu")
    for encoder in parts.text_encoders:
        encoder.to("cpu")
    step, engine = real_step(made, parts, policy, shapes, device)
    step()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    del engine
    return torch.cuda.max_memory_allocated(device)


def on_cpu(made, policy: Policy, shapes: rehearse.Shapes) -> int:
    step, _ = real_step(made, made.tiny(), policy, shapes, torch.device("cpu"))
    step()  # the first call allocates what stays
    return allocator_peak(step)


def real_step(
    made, parts: Parts, policy: Policy, shapes: rehearse.Shapes, device: torch.device
) -> tuple[Callable[[], object], Engine]:
    memory.prepare(parts.unet, policy, device)
    engine = Engine(made.units(parts), policy, device)

    def step() -> None:
        micro = [filled(parts, shapes, device) for _ in range(shapes.accumulation)]
        rehearse.run_step(engine, micro, shapes)

    return step, engine


def filled(
    parts: Parts, shapes: rehearse.Shapes, device: torch.device
) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
    """A rehearsal's micro-batch with zeros in it, on a real device."""
    values, target, _ = rehearse.batch(parts, shapes, False)

    def real(tensor: Tensor) -> Tensor:
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)

    return {name: real(value) for name, value in values.items()}, real(target), None


def allocator_peak(step: Callable[[], object]) -> int:
    """Largest sum of live bytes that the CPU allocator handed out during `step`, read from its own log. What a kernel of
    ours allocates and frees within itself on the CPU does not count (on a card it has no temporaries), nor what a
    convolution does (the planner books workspaces apart)."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events: list[tuple[int, int, int, int]] = []  # time, bytes, address, which kernel of ours (0: none)

    def walk(node, kernel: int) -> None:
        if node.tag == _EventType.Allocation:
            events.append((node.start_time_ns, node.extra_fields.alloc_size, node.extra_fields.ptr, kernel))
        for child in node.children:
            walk(child, node.id if node.name.startswith(OPAQUE) and not kernel else kernel)

    for root in profiler.profiler.kineto_results.experimental_event_tree():
        walk(root, 0)
    events.sort(key=lambda event: event[0])
    born: dict[int, int] = {}
    hidden = set()
    for index, (_, size, address, kernel) in enumerate(events):
        if size > 0:
            born[address] = index
        elif address in born:
            start = born.pop(address)
            if kernel and events[start][3] == kernel:
                hidden |= {start, index}
    live = peak = 0
    for index, (_, size, _, _) in enumerate(events):
        if index not in hidden:
            live += size
            peak = max(peak, live)
    return peak
