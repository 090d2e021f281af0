"""A unit's gradients as one flat buffer, which one kernel reads and one copy moves.

Of a single micro-batch, autograd makes each parameter's gradient where it likes and one call copies them all. Of several,
autograd adds each to its place in an fp32 buffer: sums have fp32's precision, whatever the weights are, and a unit's worth
of memory whatever their number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.step.residency import Holding


class Gradients:
    """Of the trained parameters of one unit. `parts`: each of them as a view of `flat`, in the parameter's shape."""

    def __init__(self, holding: Holding, flat: Tensor):
        self.flat, self.parts = flat, [place.view(flat) for place in holding.trained]

    @classmethod
    def opened(cls, holding: Holding, device: torch.device) -> Gradients:
        """Zeros that backward adds to."""
        made = cls(holding, torch.zeros(holding.n, dtype=torch.float32, device=device))
        for place, part in zip(holding.trained, made.parts, strict=True):
            place.parameter.grad = part
        return made

    @classmethod
    def gathered(cls, holding: Holding, device: torch.device) -> Gradients:
        """From what backward left in the parameters."""
        found = [place.parameter.grad for place in holding.trained]
        # zeros between parameters, where nothing is copied to: a group of moments there must have no garbage in it
        make = torch.zeros if holding.has_gaps or any(grad is None for grad in found) else torch.empty
        made = cls(holding, make(holding.n, dtype=holding.tensors["weight"][1], device=device))
        there = [(part, grad) for part, grad in zip(made.parts, found, strict=True) if grad is not None]
        if there:
            torch._foreach_copy_([part for part, _ in there], [grad for _, grad in there])
        return made

    def norms(self) -> Tensor:
        """The norm of each parameter's gradient, fp32 (k,). One per parameter as clip_grad_norm_ takes them, so that the
        order of sums is the same."""
        return torch.stack(torch._foreach_norm(self.parts, 2.0, dtype=torch.float32))
