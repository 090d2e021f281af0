"""CUDA graphs: a whole step's kernels are recorded once for each shape and replayed with one launch.

At batch 2 a fast card waits for Python: a step of SD 1.5 launches some 3,800 kernels. The first step of a shape runs eagerly
and loads what its kernels need; the second is recorded, forward, backward, clipping and update, and from then on a step is
a few small copies and one launch. What changes from step to step lies on the card: inputs, targets, and the optimizer's
numbers (learning rate, bias correction, the key of random rounding).

Saves: nothing; it is about speed.
Costs: what a step takes beside weights and state stays reserved between steps, and is about a quarter larger; whoever
       else computes (pictures, the guard, a step of a new shape) has it given back first, and recording anew takes half a
       second. All must stay on the card: not with stream, boundaries = ram or gradients = ram. Not with compile, nor with
       optimizers other than adamw, which count on the host; not with steps that draw random numbers (dropout), nor on
       several cards. The planner leaves it out there, and asked for it is refused.
Exact: yes, bit for bit: the same kernels in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.errors import ConfigError
from trainer.policy import Policy
from trainer.settings.config import Memory

FIELDS = ()


def begin(wanted: Memory, device: str) -> dict[str, Any]:
    """Where nobody asked, the planner decides once it knows the rest."""
    return {"cuda_graphs": bool(wanted.cuda_graphs) and device == "cuda"}


def enabled(policy: Policy) -> bool:
    return policy.cuda_graphs


def check(policy: Policy) -> None:
    for name, stays in (("stream", "off"), ("boundaries", "card"), ("gradients", "card")):
        if (value := getattr(policy, name)) != stays:
            raise ConfigError(
                f"memory.{name} = {value!r} cannot be combined with memory.cuda_graphs: what visits the card has no fixed "
                "address there.",
                f"Set --{name} {stays}, or --cuda_graphs off.",
            )
    if policy.optimizer != "adamw":
        raise ConfigError(
            f"memory.cuda_graphs cannot be combined with train.optimizer = {policy.optimizer!r}, which counts its steps on the host.",
            "Use --optimizer adamw, or --cuda_graphs off.",
        )


def check_run(cards: int, draws: bool) -> None:
    """What a policy does not say of its run. draws: whether a step draws random numbers."""
    if cards > 1:
        raise ConfigError(
            f"memory.cuda_graphs records the steps of one card, and this run is on {cards}, which tell each other their gradients.",
            "Leave out --cuda_graphs, or train on one card.",
        )
    if draws:
        raise ConfigError(
            "memory.cuda_graphs cannot be combined with lora.dropout: random numbers of a recording are not those of a step.",
            "Leave out --cuda_graphs, or set --dropout 0.",
        )


class Recording:
    """One function of tensors, its kernels recorded over inputs and outputs of its own, and replayed for any others of
    the same shapes."""

    def __init__(self, run: Callable[[Sequence[Tensor]], tuple[Tensor, ...]], inputs: Sequence[Tensor], pool: Pool):
        self.inputs = [torch.empty_like(tensor) for tensor in inputs]
        self.fill(inputs)
        self.graph = torch.cuda.CUDAGraph()
        # other threads (a screen, a reader of the card's load) may talk to the driver meanwhile
        with torch.cuda.graph(self.graph, pool=pool.handle, stream=pool.stream, capture_error_mode="thread_local"):
            self.outputs = run(self.inputs)

    def fill(self, inputs: Sequence[Tensor]) -> None:
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given, non_blocking=True)

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Queue everything; what comes back is the caller's to keep."""
        self.fill(inputs)
        self.graph.replay()
        return tuple(tensor.clone() for tensor in self.outputs)


@dataclass(frozen=True)
class Pool:
    """Memory that recordings share, which is right because only one of them runs at a time, and the stream of their card on
    which they are made: torch's own choice is one of the card that was current when it first recorded anything."""

    handle: Any
    stream: torch.cuda.Stream


def pool(device: torch.device) -> Pool:
    return Pool(torch.cuda.graph_pool_handle(), torch.cuda.Stream(device))
