"""Clipping the global gradient norm although gradients are used up unit by unit.

exact: backward only measures; gradients wait until the norm of all of them is known. On the card they are applied at once
by a second pass over the units. In pinned host memory they wait on: each unit is updated just before its forward in the
next step, where the way back of gradients (and of streamed state) hides behind computing; whoever looks at the weights
in between makes the updates happen first. early_updates, where state is streamed: nobody waits. Each unit is updated in
backward as if nothing had to be clipped, and what it was stays in RAM until the norm is known. A step that has to be clipped
after all is taken back and made again, with gradients that wait and a norm of their own. previous: each unit is updated at
once with the factor of the previous step's norm; nothing waits, and in smooth training the two norms are close.

Saves: previous saves the gradients, 2 bytes a weight (4 of fp32 weights, with accumulation or with several cards);
       gradients = ram saves the same bytes of card.
Costs: exact: the waiting gradients; with gradients = ram twice their bytes over the bus. gradients = ram has no effect
       (and is refused) where nothing has to wait, and does not go with optimizers other than adamw. A moving average
       (ema) looks at the weights after every step, so that nothing hides. early_updates: the streamed bytes a second time
       in RAM, and weights that stay on the card once; twice its time for a step that is clipped, so that updates wait while
       more than an eighth of the last steps were; the host waits for the norm in every step. Not on several cards.
Exact: exact yes, bit for bit with clip_grad_norm_ (but for the order of sums where a parameter has more than 65,536
       numbers, step/ranks/share.py); previous no (a step whose norm jumps is clipped a step late).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.errors import ConfigError
from trainer.machine import host
from trainer.memory.stream import Landing, Traffic
from trainer.policy import Policy
from trainer.settings.config import Memory

FIELDS = ("gradients", "early_updates", "reach_mb")


def begin(wanted: Memory, device: str) -> dict[str, Any]:
    """Where nobody asked, the planner decides once it knows the rest."""
    return {"early_updates": bool(wanted.early_updates), "reach_mb": wanted.reach_mb or 0}


def enabled(policy: Policy) -> bool:
    return policy.clipping == "previous" or policy.gradients == "ram" or policy.early_updates


def check(policy: Policy) -> None:
    if policy.gradients == "ram" and not policy.two_passes:
        raise ConfigError("memory.gradients = 'ram' has no effect here: every gradient is used as soon as it is there.",
                          "Set --gradients card, or --clipping exact with --max_grad_norm above 0.")  # fmt: skip
    if policy.gradients == "ram" and policy.optimizer != "adamw":
        raise ConfigError(f"memory.gradients = 'ram' cannot be combined with train.optimizer = {policy.optimizer!r}.",
                          "Use --optimizer adamw, or --gradients card.")  # fmt: skip
    if policy.early_updates and not (policy.deferred and policy.stream != "off"):
        raise ConfigError("memory.early_updates has no effect here: it is for streamed state and gradients that would wait in RAM "
                          "for the exact norm.",
                          "Leave out --early_updates, or set --stream state (or all) and --gradients ram.")  # fmt: skip
    if policy.clipping == "previous" and policy.max_grad_norm == 0:
        raise ConfigError(
            "train.clipping = 'previous' has no effect with max_grad_norm = 0.",
            "Leave out --clipping, or set --max_grad_norm 1.",
        )
    if policy.clipping == "previous" and policy.optimizer == "prodigy":
        raise ConfigError(
            "train.clipping = 'previous' cannot be combined with train.optimizer = 'prodigy', which needs all gradients at once.",
            "Leave out --clipping.",
        )


class Waiting:
    """Gradients that wait for the norm of all of them, by unit, each with its step's learning rate. Those in RAM wait on,
    until their unit's next forward."""

    def __init__(self, place: str, traffic: Traffic):
        self.place, self.traffic = place, traffic
        self.card: dict[int, Tensor] = {}
        self.shelf: dict[int, Tensor] = {}  # host buffers, kept from step to step
        self.events: dict[int, Landing | None] = {}
        self.rates: dict[int, float] = {}  # of who waits, in the order of backward

    def store(self, index: int, grad: Tensor, rate: float, lent: Tensor | None = None) -> None:
        """`lent`: bytes in host memory, as many as the gradient's, that nobody else needs while it waits."""
        self.rates[index] = rate
        if self.place == "card":
            self.card[index] = grad
            return
        if lent is not None:
            self.shelf[index] = lent.view(grad.dtype)
        stored = self.shelf.get(index)
        if stored is None or stored.dtype != grad.dtype:
            if stored is not None:  # steps of one micro-batch and of several take turns, which no run does
                self.traffic.finish()  # nobody gives up memory that a copy may still read
            stored = self.shelf[index] = host.empty(grad.shape, grad.dtype, self.traffic.device)
        self.events[index] = self.traffic.save(stored, grad)

    def away(self, index: int) -> int:
        """Bytes of a waiting gradient that are not on the card."""
        return 0 if index in self.card else self.shelf[index].nbytes

    def bring(self, index: int) -> None:
        """Start bringing a gradient back; does nothing for a unit that does not wait."""
        if index in self.rates and index not in self.card:
            grad = torch.empty_like(self.shelf[index], device=self.traffic.device)
            self.events[index] = self.traffic.up.copy(grad, self.shelf[index], after=self.events.get(index))
            self.card[index] = grad

    def clear(self) -> None:
        """Nobody waits any more; host buffers stay."""
        self.card.clear()
        self.events.clear()
        self.rates.clear()

    def take(self, index: int) -> tuple[Tensor, float]:
        self.bring(index)
        self.traffic.wait(self.events.pop(index, None))
        return self.card.pop(index), self.rates.pop(index)
