"""How a step grows: with the batch, with the resolution, with the model. One policy, the one the preset would choose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from .. import memory
from ..policy import Policy
from . import work
from .harness import Options, timed
from .ladder import _release


def suite(options: Options) -> Iterator[dict]:
    policy = Policy(weights="24bit", moments="8bit", compute=torch.bfloat16, gradients="ram", recompute_kernels=True)
    if options.tiny:
        policy = Policy(recompute_kernels=True)
    pixels = work.TINY_SIDE if options.tiny else 512
    for pairs in (1, 2) if options.tiny else (1, 2, 4):
        yield measure(options, policy, "batch", pixels, pairs)
    for side in (pixels, pixels * 2) if options.tiny else (pixels, pixels * 3 // 2, pixels * 2):
        yield measure(options, policy, "resolution", side, 1)
    for model in ("sd1", "sd2", "sdxl"):
        yield measure(replace(options, model=model), policy, "model", pixels, 1)


def measure(options: Options, policy: Policy, varied: str, pixels: int, pairs: int) -> dict:
    made = work.parts(options)
    undo = memory.prepare(made.unet, policy, options.device)
    engine, step = work.stepper(made, policy, [work.batch(made, pixels, pairs, options.device)], options.device)
    row = {"varied": varied, "model": options.model, "tiny": options.tiny, "pixels": pixels, "pairs": pairs}
    row["parameters"] = sum(holding.n for holding in engine.holdings)
    row |= timed(step, options).row(2 * pairs)
    if options.device.type == "cpu":
        row["live_peak_bytes"], _ = work.live_peak(step, work.standing(engine))
    undo()
    del made, engine, step
    _release()
    return row
