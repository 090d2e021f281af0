"""The memory techniques: one file each, all values of one policy, in the order in which they touch a run.

This tuple is the one list of them: the planner fills their settings, a refusal names them, `explain` shows their cards, and
a run checks and applies them by walking it. A technique has

    a card          the docstring of its file: Saves, Costs, Exact
    FIELDS          the settings of [memory] that the planner decides where nobody did, each a field of the policy, too
    begin           where the planner does not walk a ladder for it: begin(settings, "cuda" or "cpu") gives the policy's fields
    enabled, check  by policy; check refuses impossible combinations by name
    apply           only where modules change: apply(denoiser, policy, device) returns the undo, or None where it does
                    nothing; the other techniques are carried out by the engine's schedule
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trainer.memory import (
    allocator,
    anchor,
    attention,
    boundaries,
    channels_last,
    checkpointing,
    clipping,
    compile,
    cuda_graphs,
    moments,
    recompute_kernels,
    shard,
    stream,
    weights,
)
from trainer.policy import Policy
from trainer.settings.config import Memory

TECHNIQUES = (
    allocator,  # before CUDA starts
    attention,  # which kernels the modules call
    recompute_kernels,
    channels_last,  # while the engine takes the weights over
    compile,  # the modules as they now are
    weights,  # how the engine stores what it takes over
    moments,
    anchor,  # what an update reads beside that
    stream,  # where that lives
    shard,  # and on which card
    checkpointing,  # what forward keeps
    boundaries,
    clipping,  # what backward does with gradients
    cuda_graphs,  # everything that then runs
)


def fields() -> tuple[str, ...]:
    """The settings of [memory] that the planner decides, in the order of the techniques."""
    return tuple(name for technique in TECHNIQUES for name in technique.FIELDS)


def begin(wanted: Memory, device: str) -> dict[str, Any]:
    """The fields of a policy that the planner begins with: as asked for, or as each technique has it on such a device."""
    return {
        name: value
        for technique in TECHNIQUES
        if hasattr(technique, "begin")
        for name, value in technique.begin(wanted, device).items()
    }


def choices(policy: Policy) -> dict[str, Any]:
    """What a policy says of them, in the settings' own words."""
    found = {name: getattr(policy, name) for name in fields()}
    found["resident_units"] = policy.resident_units if policy.stream != "off" else None
    found["reach_mb"] = policy.reach_mb if policy.early_updates else None
    return {name: worded(value) for name, value in found.items()}


def worded(value: Any) -> Any:
    """A switch as the settings write it; anything else as it is."""
    return ("off", "on")[value] if isinstance(value, bool) else value


def check(policy: Policy) -> None:
    """Refuse what cannot be combined, before any weight is loaded."""
    for technique in TECHNIQUES:
        if technique.enabled(policy):
            technique.check(policy)


def prepare(denoiser: nn.Module, policy: Policy, device: torch.device | str) -> Callable[[], None]:
    """Change a denoiser's modules as the policy says, before an engine takes their weights over. Returns the undo."""
    applied = [t.apply(denoiser, policy, torch.device(device)) for t in TECHNIQUES if hasattr(t, "apply")]

    def restore() -> None:
        for undo in reversed(applied):
            if undo is not None:
                undo()

    return restore
