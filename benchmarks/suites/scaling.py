"""How a step grows: with the batch, with the resolution, with the model. One policy, the one the preset would choose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from trainer import memory
from trainer.policy import Policy

from ..harness import work
from ..harness.timing import Options, guarded, release, timed


def suite(options: Options) -> Iterator[dict]:
    policy = Policy(weights="24bit", moments="8bit", compute=torch.bfloat16, gradients="ram", recompute_kernels=True)
    if options.tiny:
        policy = Policy(recompute_kernels=True)
    pixels = work.TINY_SIDE if options.tiny else 512
    cases = [("batch", options.model, pixels, pairs) for pairs in ((1, 2) if options.tiny else (1, 2, 4))]
    sides = (pixels, pixels * 2) if options.tiny else (pixels, pixels * 3 // 2, pixels * 2)
    cases += [("resolution", options.model, side, 1) for side in sides]
    cases += [("model", model, pixels, 1) for model in ("sd1", "sd2", "sdxl")]
    for varied, model, side, pairs in cases:
        row = {"varied": varied, "model": model, "pixels": side, "pairs": pairs}
        yield guarded(row, partial(measure, replace(options, model=model), policy, side, pairs))
        release()


def measure(options: Options, policy: Policy, pixels: int, pairs: int) -> dict:
    made = work.parts(options, "denoiser", device=options.device)
    undo = memory.prepare(made.denoiser, policy, options.device)
    engine, step = work.stepper(made, policy, [work.batch(made, pixels, pairs, options.device)], options.device)
    release()
    try:
        row = {"parameters": sum(holding.n for holding in engine.holdings)} | timed(step, options).row(2 * pairs)
        if options.device.type == "cpu":
            row["live_peak_bytes"], _ = work.live_peak(step, work.standing(engine))
        return row
    finally:
        undo()
