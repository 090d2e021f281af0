"""Checkpointing by need: keep a unit's graph, keep part of it, or keep nothing and run the unit again in backward.

A unit's inputs pass through an inlet, a node at which its own little graph ends. Backward enters at the unit's outputs
with their cotangents and comes out at the inlets with those of its inputs, so the whole model never has to be one
graph. Cotangents that later readers of an input have already delivered enter at the inlet first: sums are then taken in
the very order in which autograd over the whole model takes them, which is what makes the result equal bit for bit.

Saves: blocks: every activation inside a unit but the largest unit's (SD 1.5 512 px pair 1817 -> 461 MiB); selective:
       what is cheap to recompute, keeping outputs of matrix products, convolutions and attention (1817 -> 1262).
Costs: blocks 24 % more arithmetic, 33 % where weights or the values between units leave the card; selective only
       elementwise work. Selective cannot be combined with CUDA graphs.
Exact: yes, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from trainer.policy import Policy

FIELDS = ("checkpointing",)


def enabled(policy: Policy) -> bool:
    return policy.checkpointing != "off"


def check(policy: Policy) -> None:
    """Nothing forbids it."""


class Inlet(torch.autograd.Function):
    """Passes a value in; on the way back puts its cotangent into `sink[name]` and ends the graph."""

    @staticmethod
    def forward(ctx, anchor: Tensor, value: Tensor, sink: dict[str, Tensor], name: str) -> Tensor:
        ctx.sink, ctx.name = sink, name
        return value.detach()

    @staticmethod
    def backward(ctx, *cotangents: Tensor):
        (cotangent,) = cotangents
        whole = cotangent.untyped_storage().nbytes() > cotangent.nbytes
        ctx.sink[ctx.name] = (
            cotangent.clone() if whole else cotangent
        )  # a skip's part would keep all of a concatenation
        return None, None, None, None


@dataclass
class Record:
    """One run of a unit with its graph. Edges instead of tensors: what the graph does not need is not kept alive."""

    outlets: dict[str, GradientEdge]
    inlets: dict[str, GradientEdge]
    sink: dict[str, Tensor]

    def backward(self, cotangents: dict[str, Tensor]) -> bool:
        """Take the cotangents of what this unit wrote, add to those of what it read, fill the parameters' gradients.

        False where nothing downstream depends on the unit.
        """
        roots = [(edge, cotangents.pop(name)) for name, edge in self.outlets.items() if name in cotangents]
        if not roots:
            return False
        roots += [(edge, cotangents.pop(name)) for name, edge in self.inlets.items() if name in cotangents]
        edges, values = [edge for edge, _ in roots], [value for _, value in roots]
        del roots
        torch.autograd.backward(edges, values)
        cotangents.update(self.sink)
        return True


def record(
    run: Callable[..., tuple[Tensor, ...]],
    reads: Iterable[str],
    writes: Iterable[str],
    inputs: list[Tensor],
    wants: set[str],
) -> tuple[Record, tuple[Tensor, ...]]:
    """Run with a graph, which only the record keeps; the outputs come back detached.

    `wants`: the names among `reads` whose cotangents are wanted.
    """
    sink: dict[str, Tensor] = {}
    inlets: dict[str, GradientEdge] = {}
    with torch.enable_grad():
        anchor = torch.empty(0, requires_grad=True)
        passed = []
        for name, value in zip(reads, inputs, strict=True):
            if name in wants:
                value = Inlet.apply(anchor, value, sink, name)
                inlets[name] = get_gradient_edge(value)
            passed.append(value)
        outputs = run(*passed)
        outlets = {name: get_gradient_edge(out) for name, out in zip(writes, outputs, strict=True) if out.requires_grad}
    return Record(outlets, inlets, sink), tuple(out.detach() for out in outputs)


_KEEP = {
    torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default, torch.ops.aten.baddbmm.default,
    torch.ops.aten.convolution.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default, torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_attention_math.default,
}  # fmt: skip


def _keep_products(context, op, *args, **kwargs) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _KEEP else CheckpointPolicy.PREFER_RECOMPUTE


def selective(run: Callable[..., tuple[Tensor, ...]], draws: bool) -> Callable[..., tuple[Tensor, ...]]:
    """`run`, keeping only the outputs of matrix products, convolutions and attention for backward."""

    def contexts():
        return create_selective_checkpoint_contexts(_keep_products)

    return partial(checkpoint, run, use_reentrant=False, preserve_rng_state=draws, context_fn=contexts)


def again(run: Callable[..., tuple[Tensor, ...]], draws: bool) -> Callable[..., tuple[Tensor, ...]]:
    """`run`, keeping nothing. Backward runs it again up to the last thing it needs, so not, for example, the convolution
    that ends a resnet: SD 1.5 then takes 24 % more arithmetic than without checkpointing instead of 33 %."""
    return partial(checkpoint, run, use_reentrant=False, preserve_rng_state=draws)


def draws(module: nn.Module) -> bool:
    """Whether running the module takes random numbers, which a second run must then take again."""
    return any(isinstance(m, nn.Dropout) and m.p > 0 and m.training for m in module.modules())


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def replay(state: tuple[Tensor, Tensor | None] | None, device: torch.device):
    """Run with the random numbers that followed `state`, and leave the generators as they were. None: nothing to replay."""
    if state is None:
        yield
        return
    now = random_state(device)
    _set(state, device)
    yield
    _set(now, device)


def _set(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
