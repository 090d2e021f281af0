"""Whether an op may run at once, without the detour through torch's dispatcher.

A custom op is what `torch.compile` can trace, what a simulation on meta tensors can answer for and what a profiler or
selective checkpointing sees as one operator. In a plain eager step nobody looks, and the detour costs the host several times
what the op's own few lines take: there a `torch.autograd.Function` with the same two halves runs directly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import choice


def runs_at_once(x: Tensor) -> bool:
    """True where nothing traces, watches or simulates the operator, or where a simulation is to see what is inside."""
    return choice.simulates(x) or not (
        torch.compiler.is_compiling()
        or x.is_meta
        or torch._C._len_torch_dispatch_stack()
        or torch._C._autograd._profiler_enabled()
    )
