"""A unit's gradients as one flat buffer, which one kernel reads and one copy moves.

Of a single micro-batch, autograd makes each parameter's gradient where it likes; a few megabytes of them at a time are
copied to their places by one call and let go. Of several, autograd adds each to its place in an fp32 buffer: sums have
fp32's precision, whatever the weights are, and a unit's worth of memory whatever their number.
"""

from __future__ import annotations

from functools import partial
from weakref import ref

import torch
from torch import Tensor

from trainer.step.residency import Holding

TOGETHER = 16 << 20  # bytes of gradients that are copied by one call: a card has room for them, and calls are few


class Gradients:
    """Of the trained parameters of one unit. `parts`: each of them as a view of `flat`, in the parameter's shape."""

    def __init__(self, holding: Holding, flat: Tensor):
        self.flat, self.parts = flat, [place.view(flat) for place in holding.trained]
        self.runs = holding.runs
        self.waiting: list[tuple[Tensor, Tensor]] = []  # (place, gradient), not yet copied
        self.waiting_bytes = 0
        self.come: set[int] = set()

    @classmethod
    def summed(cls, holding: Holding, device: torch.device) -> Gradients:
        """Zeros that backward adds to."""
        made = cls(holding, torch.zeros(holding.share.whole, dtype=torch.float32, device=device))
        for place, part in zip(holding.trained, made.parts, strict=True):
            place.parameter.grad = part
        return made

    @classmethod
    def gathered(cls, holding: Holding, device: torch.device) -> Gradients:
        """What a single backward will make, parameter by parameter."""
        made = cls(holding, torch.empty(holding.n, dtype=holding.tensors["weight"][1], device=device))
        if gaps := [made.flat[start:stop] for start, stop in holding.gaps]:
            torch._foreach_zero_(gaps)  # nothing else comes there, and a group of moments must find no garbage
        holding.gradients = made
        return made

    def take(self, number: int, grad: Tensor) -> None:
        """One gradient, for which autograd has no use any more."""
        if number in self.come:  # a second backward reached the parameter
            self.copy()
            self.parts[number].add_(grad)
            return
        self.come.add(number)
        self.waiting.append((self.parts[number], grad))
        self.waiting_bytes += grad.nbytes
        if self.waiting_bytes >= TOGETHER:
            self.copy()

    def copy(self) -> None:
        if self.waiting:
            torch._foreach_copy_([part for part, _ in self.waiting], [grad for _, grad in self.waiting])
        self.waiting, self.waiting_bytes = [], 0

    def close(self, holding: Holding) -> None:
        """Backward is through."""
        self.copy()
        if holding.gradients is self:
            for number in set(range(len(self.parts))) - self.come:  # backward did not reach them
                self.parts[number].zero_()
        holding.gradients = None
        for place in holding.trained:
            place.parameter.grad = None

    def keep(self, mine: Tensor) -> None:
        """Of several ranks: a slice of the sum is what is left of the whole."""
        self.flat, self.parts = mine, []

    def norms(self) -> Tensor:
        """The norms of the unit's runs (share.py), fp32 (k,)."""
        return self.runs.norms(self.flat)


def watch(holding: Holding) -> None:
    """Let gradients go to `holding.gradients` as soon as autograd has made them, where somebody gathers."""
    # a holding has its parameters: hooks that had it, too, would keep both for ever, and the card's memory
    unowned = ref(holding)
    for number, place in enumerate(holding.trained):
        place.parameter.grad_dtype = None  # gradients may be fp32 sums beside 16-bit weights
        place.parameter.register_post_accumulate_grad_hook(partial(_made, unowned, number))


def _made(unowned: ref[Holding], number: int, parameter: Tensor) -> None:
    holding = unowned()
    if holding is not None and holding.gradients is not None and parameter.grad is not None:
        grad, parameter.grad = parameter.grad, None
        holding.gradients.take(number, grad)
