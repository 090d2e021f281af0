"""The ladder: one technique more per row, peak memory, speed, the change against the row above, the loss after N steps.

The first rows are the built-in baseline (plain diffusers code), the later ones the engine. Every row trains a fresh copy
of the same model on the same number of pictures; rows that share the engine see the same noise, so that their losses can
be compared with each other. On a CPU the bytes are those of live tensors, followed operator by operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from trainer import memory
from trainer.policy import Policy

from ..harness import baseline, work
from ..harness.timing import Options, guarded, release, timed

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


def policies(half: torch.dtype, card: bool = False) -> list[tuple[str, Policy]]:
    """`card`: channels last and CUDA graphs as a plan for a card has them; a CPU gains nothing by either."""
    fused = Policy(weights="fp32", moments="8bit", compute=half, channels_last=card)
    exact = replace(fused, weights="24bit", gradients="ram")
    kernels = replace(exact, recompute_kernels=True)
    blocks = replace(kernels, checkpointing="blocks")
    state = replace(blocks, stream="state")
    early = replace(kernels, stream="state", early_updates=True, reach_mb=512)
    replayed = replace(kernels, gradients="card", cuda_graphs=True)
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
        ("8-bit, nothing recomputed, state streamed, early updates", early),
        *([("24-bit weights, all on the card, steps as CUDA graphs", replayed)] if card else []),
    ]


def suite(options: Options) -> Iterator[dict]:
    half, above = torch.bfloat16, None
    ways = [(name, partial(_baseline, options, recipe)) for name, recipe in recipes(half)]
    ways += [
        (name, partial(_engine, options, policy)) for name, policy in policies(half, options.device.type == "cuda")
    ]
    for name, way in ways:
        row = guarded({"technique": name, "model": options.model}, way)
        release()
        if above is not None and "failed" not in row:
            row["bytes_against_above"] = f"{(peak(row) - peak(above)) / 2**20:+.1f} MiB"
            row["speed_against_above"] = f"{row['images_per_second'] / above['images_per_second'] - 1:+.0%}"
        yield row
        above = above if "failed" in row else row


def _baseline(options: Options, recipe: baseline.Recipe) -> dict:
    made = work.parts(options, *(["denoiser"] if recipe.cached else []), device=options.device)
    stays, step = baseline.stepper(made, recipe, work.side(options, made), PAIRS, options.device)
    return _measured(step, options, stays)


def _engine(options: Options, policy: Policy) -> dict:
    made = work.parts(options, "denoiser", device=options.device)
    undo = memory.prepare(made.denoiser, policy, options.device)
    batches = [work.batch(made, work.side(options, made), PAIRS, options.device, seed) for seed in range(4)]
    engine, step = work.stepper(made, policy, batches, options.device)
    try:
        return _measured(step, options, partial(work.standing, engine), policy.cuda_graphs)
    finally:
        undo()


def _measured(step: Callable, options: Options, stays: Callable, recorded: bool = False) -> dict:
    release()  # what building the model left in the allocator's hands
    if recorded:
        torch.cuda.reset_peak_memory_stats()
    row = timed(step, options, recorded).row(2 * PAIRS)
    if options.device.type == "cpu":
        row["live_peak_bytes"], losses = work.live_peak(step, stays())
    else:
        losses = step()
    return row | {"loss": round(losses.flatten()[0].item(), 5), "steps": options.warmup + options.repeats + 1}


def peak(row: dict) -> int:
    """Bytes of tensors at the worst moment: allocated on a card, followed operator by operator on a CPU."""
    return row.get("peak_allocated_bytes") or row["live_peak_bytes"]
