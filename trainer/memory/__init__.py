"""The memory techniques: one file each, all values of one policy, in the order in which they touch a run.

A technique has a card at the top of its file (Saves, Costs, Exact), `enabled(policy)` and `check(policy, facts)`, which
refuses impossible combinations by name. Those that change modules have `apply`, called by `prepare`; the others are
carried out by the engine's schedule.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from trainer.memory import (
    allocator,
    attention,
    boundaries,
    channels_last,
    checkpointing,
    clipping,
    compile,
    cuda_graphs,
    moments,
    recompute_kernels,
    stream,
    weights,
)

TECHNIQUES = (
    allocator,  # before CUDA starts
    attention,  # which kernels the modules call
    recompute_kernels,
    channels_last,  # while the engine takes the weights over
    compile,  # the modules as they now are
    weights,  # how the engine stores what it takes over
    moments,
    stream,  # where that lives
    checkpointing,  # what forward keeps
    boundaries,
    clipping,  # what backward does with gradients
    cuda_graphs,  # everything that then runs
)


def check(policy, facts: object = None) -> None:
    """Refuse what cannot be combined, before any weight is loaded."""
    for technique in TECHNIQUES:
        if technique.enabled(policy):
            technique.check(policy, facts)


def prepare(unet: nn.Module, policy, device: torch.device | str) -> Callable[[], None]:
    """Change a denoiser's modules as the policy says, before an engine takes their weights over. Returns the undo."""
    device = torch.device(device)
    undo = [attention.apply(unet, policy.attention, device)]
    if recompute_kernels.enabled(policy):
        undo.append(recompute_kernels.apply(unet))
    if compile.enabled(policy) and device.type != "meta":  # a simulation runs the eager code, which needs more
        undo.append(compile.apply(unet))

    def restore() -> None:
        for each in reversed(undo):
            each()

    return restore
