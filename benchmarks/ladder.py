"""The ladder: one technique more per row, peak memory, speed, the change against the row above, the loss after N steps.

The first rows are the built-in baseline (plain diffusers code), the later ones the engine. Every row trains a fresh copy
of the same model on the same number of pictures; rows that share the engine see the same noise, so that their losses can
be compared with each other. On a CPU the bytes are those of live tensors, followed operator by operator.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial

import torch

from .. import memory
from ..policy import Policy
from . import baseline, work
from .harness import Options, timed

PAIRS = 1


def recipes(half: torch.dtype) -> list[tuple[str, baseline.Recipe]]:
    plain = baseline.Recipe()
    mixed = replace(plain, mixed=half)
    cached = replace(mixed, cached=True)
    eight = replace(cached, eight_bit=True)
    return [
        ("plain fp32 AdamW, diffusers", plain),
        ("+ mixed precision", mixed),
        ("+ cached latents and text", cached),
        ("+ 8-bit AdamW (bitsandbytes)", eight),
        ("+ fused attention", replace(eight, sdpa=True)),
    ]


def policies(half: torch.dtype) -> list[tuple[str, Policy]]:
    fused = Policy(weights="fp32", moments="8bit", compute=half)
    exact = replace(fused, weights="24bit", gradients="ram")
    kernels = replace(exact, recompute_kernels=True)
    blocks = replace(kernels, checkpointing="blocks")
    state = replace(blocks, stream="state")
    return [
        ("+ update inside backward", replace(fused, max_grad_norm=0.0)),
        ("+ exact clipping, gradients in RAM", replace(fused, gradients="ram")),
        ("+ 24-bit weights", exact),
        ("+ recompute kernels", kernels),
        ("+ selective checkpointing", replace(kernels, checkpointing="selective")),
        ("+ block checkpointing", blocks),
        ("+ 4-bit moments", replace(blocks, moments="4bit")),
        ("8-bit, state streamed", state),
        ("+ everything streamed", replace(state, stream="all")),
        ("+ boundaries in RAM", replace(state, stream="all", boundaries="ram")),
    ]


def suite(options: Options) -> Iterator[dict]:
    half, above = torch.bfloat16, None
    for name, recipe in recipes(half):
        made = work.parts(options)
        stays, step = baseline.stepper(made, recipe, work.side(options, made), PAIRS, options.device)
        above = yield from _row(name, step, options, above, stays)
        del made, stays, step
        _release()
    for name, policy in policies(half):
        made = work.parts(options)
        undo = memory.prepare(made.unet, policy, options.device)
        batches = [work.batch(made, work.side(options, made), PAIRS, options.device, seed) for seed in range(4)]
        engine, step = work.stepper(made, policy, batches, options.device)
        above = yield from _row(name, step, options, above, partial(work.standing, engine))
        undo()
        del made, engine, step, batches
        _release()


def _row(
    name: str, step: Callable, options: Options, above: dict | None, stays: Callable
) -> Generator[dict, None, dict]:
    row = {"technique": name, "model": options.model, "tiny": options.tiny}
    row |= timed(step, options).row(2 * PAIRS)
    key = "peak_allocated_bytes"
    if options.device.type == "cpu":
        key = "live_peak_bytes"
        row[key], losses = work.live_peak(step, stays())
    else:
        losses = step()
    row["loss"], row["steps"] = round(losses.flatten()[0].item(), 5), options.warmup + options.repeats + 1
    if above is not None:
        row["bytes_against_above"] = f"{(row[key] - above[key]) / 2**20:+.1f} MiB"
        row["speed_against_above"] = f"{row['images_per_second'] / above['images_per_second'] - 1:+.0%}"
    yield row
    return row


def _release() -> None:
    gc.collect()
    memory.allocator.release()
