"""CUDA graphs: a unit's kernels are recorded once and replayed with one launch.

At batch 2 a fast card waits for Python: SD 1.5 launches some 1,800 kernels in forward alone. The first step runs
eagerly and shows the shapes; then every unit is captured by torch's own make_graphed_callables, forward and backward,
into one memory pool.

Saves: nothing; it is about speed.
Costs: inputs, outputs and saved activations of all units stay allocated. One micro-batch a step, all weights resident;
       shapes other than the first step's (another bucket) run eagerly. Not with streaming, boundaries = ram, selective
       checkpointing, autocast (fp32 weights with 16-bit compute) or compile. Written without a GPU at hand: the
       capture has not been measured yet.
Exact: yes: the same kernels in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from trainer.errors import ConfigError
from trainer.policy import Policy
from trainer.units import Unit

FIELDS = ()


def enabled(policy: Policy) -> bool:
    return policy.cuda_graphs


def check(policy: Policy) -> None:
    if policy.weights == "fp32" and policy.compute != torch.float32:
        raise ConfigError("memory.cuda_graphs cannot be combined with fp32 weights under mixed precision.",
                          "Set --weights 24bit, or --mixed_precision no, or leave out --cuda_graphs.")  # fmt: skip


class Replayable(nn.Module):
    """A unit as the module that make_graphed_callables wants: it must see the parameters."""

    def __init__(self, unit: Unit):
        super().__init__()
        self.owned = unit.module
        self.run = unit.run

    def forward(self, *inputs: Tensor):
        return self.run(*inputs)


def capture(units: list[Unit], inputs: list[tuple[Tensor, ...]], *, recomputed: bool) -> list[Unit]:
    """The units with graphed `run`s. `inputs`: an example of each unit's inputs, requiring gradients where it will.

    All graphs have their memory from one pool, so they must be captured in the order in which they will be replayed: what
    one leaves, a later one takes. `recomputed`: whether a unit's forward runs right before its backward, the last unit
    first, instead of before all backwards.
    """
    modules = tuple(Replayable(unit) for unit in units)
    if recomputed:
        pool, graphed = torch.cuda.graph_pool_handle(), [None] * len(units)
        for k in reversed(range(len(units))):
            graphed[k] = torch.cuda.make_graphed_callables(modules[k], inputs[k], allow_unused_input=True, pool=pool)
    else:
        graphed = torch.cuda.make_graphed_callables(modules, tuple(inputs), allow_unused_input=True)
    return [
        replace(unit, run=partial(_choose, unit.run, each, [x.shape for x in example]))
        for unit, each, example in zip(units, graphed, inputs, strict=True)
    ]


def _choose(eager: Callable, graphed: Callable, shapes: list[torch.Size], *inputs: Tensor):
    """A graph copies its inputs to where it was captured, so other shapes would fail, or worse, be broadcast."""
    return (graphed if [x.shape for x in inputs] == shapes else eager)(*inputs)
