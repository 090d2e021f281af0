"""torch.compile for the repeated blocks: resnets and transformer blocks become fused kernels.

Blocks of one kind and shape share a compilation, so a model costs a handful of them instead of one graph of everything.

Saves: activations between fused elementwise operators; recomputation decisions move into the compiler's partitioner.
Costs: a minute or so at the first step. Not with checkpointing = selective (the compiler decides itself), nor with
       stream = all (weights that change their address would be compiled again), nor with CUDA graphs.
Exact: within rounding (fused kernels keep intermediate values in fp32).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trainer.errors import ConfigError
from trainer.policy import Policy
from trainer.settings.config import Memory

TOLERANCE = 1e-3
BACKEND = "inductor"
BLOCKS = ("ResnetBlock2D", "BasicTransformerBlock")
FIELDS = ()


def begin(wanted: Memory, device: str) -> dict[str, Any]:
    return {"compile": wanted.compile}


def enabled(policy: Policy) -> bool:
    return policy.compile != "off"


def check(policy: Policy) -> None:
    if policy.checkpointing == "selective":
        raise ConfigError("memory.compile cannot be combined with memory.checkpointing = 'selective'.",
                          "Set --checkpointing off or blocks, or --compile off.")  # fmt: skip
    if policy.stream == "all":
        raise ConfigError("memory.compile cannot be combined with memory.stream = 'all'.",
                          "Set --stream off or state, or --compile off.")  # fmt: skip
    if policy.cuda_graphs:
        raise ConfigError("memory.compile cannot be combined with memory.cuda_graphs.",
                          "Choose one: --compile off, or --cuda_graphs off.")  # fmt: skip


def apply(module: nn.Module, policy: Policy, device: torch.device | str = "cpu") -> Callable[[], None] | None:
    """Compile the repeated blocks inside `module`; they are compiled when they first run. Returns the undo."""
    if not enabled(policy) or torch.device(device).type == "meta":  # a simulation runs the eager code, which needs more
        return None
    found = [part for part in module.modules() if type(part).__name__ in BLOCKS]
    for part in found:
        part.compile(backend=BACKEND)

    def undo() -> None:
        for part in found:
            part._compiled_call_impl = None

    return undo
