"""The anchor: after each update weights are pulled back towards the base model's, w <- w + share (w0 - w).

Weight decay shrinks weights towards 0, which is nobody's model; decayed towards w0 they stay near what they knew, and
only what the photos ask for again and again moves them (L2-SP, arXiv 1802.01483; for personalisation arXiv 2505.19519). No
class image and no second model is needed. The share of a step is `prior.anchor` at the full learning rate and follows the
rate; weight decay towards 0 is off with it. A word that learns alone (models/word.py) is not held: it is the subject's.

w0 is not kept twice: it lies in the model's file (files/mapped.py), is gathered unit by unit in 16 bits where the optimizer
writes the unit, and read by the same kernel. Where nothing leaves the card anyway it stays there.

Saves: class images and their half of every step, where the anchor takes their place.
Costs: 2 bytes a weight: on the card where state and gradients stay there; else of a window of two units, brought over
       the bus with their state, and twice the largest unit in RAM, while the host gathers them. Only with the optimizer
       adamw; of adapters it is plain weight decay, for w0 is where they add nothing. Not with DoRA, whose magnitudes multiply.
Exact: yes: torch's AdamW followed by lerp_(w0, share), to the rounding of the kernel. w0 has fp16's 11 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trainer.errors import ConfigError
from trainer.machine import host
from trainer.memory.stream import Landing, Traffic
from trainer.policy import Policy

WIDTH = torch.float16.itemsize
Gather = Callable[[Tensor], None]  # puts w0 into a flat fp16 buffer in host memory


FIELDS = ()


def enabled(policy: Policy) -> bool:
    return policy.hyper.anchor > 0


def check(policy: Policy) -> None:
    if policy.optimizer != "adamw":
        raise ConfigError(
            f"prior.anchor needs the optimizer that reads the base model's weights, and {policy.optimizer} does not.",
            "Use --optimizer adamw, or leave out --anchor.",
        )


class Desk:
    """Two buffers in host memory of the largest unit's size, in which units are gathered on their way to a card. Where one is
    still being read by a copy, the host waits: it is then two units ahead."""

    def __init__(self, size: int, traffic: Traffic):
        self.traffic = traffic
        self.sides = [host.empty(size * WIDTH, torch.uint8, traffic.device) for _ in range(2)]
        self.landings: list[Any] = [None, None]
        self.turn = 0

    def send(self, gather: Gather, live: Tensor) -> Landing | None:
        """Gather and start the copy to `live`."""
        self.turn = 1 - self.turn
        if (landing := self.landings[self.turn]) is not None and self.traffic.device.type == "cuda":
            landing.synchronize()
        home = self.sides[self.turn][: live.nbytes]
        if home.device.type != "meta":
            gather(home.view(torch.float16))
        self.landings[self.turn] = self.traffic.up.copy(live, home)
        return self.landings[self.turn]


class Anchor:
    """w0 of one unit of n weights. desk: None where w0 stays on the card."""

    def __init__(self, gather: Gather, n: int, traffic: Traffic, desk: Desk | None):
        self.gather, self.n, self.traffic, self.desk = gather, n, traffic, desk
        self.live: Tensor | None = None  # (2 n,) uint8
        self.arrived: Landing | None = None
        if desk is None:
            self.unpark()

    @property
    def stays(self) -> bool:
        return self.desk is None

    @property
    def nbytes(self) -> int:
        return WIDTH * self.n

    def bring(self) -> None:
        """Start the journey; does nothing where it is there or on its way."""
        if self.live is None and self.desk is not None:
            self.live = torch.empty(self.nbytes, dtype=torch.uint8, device=self.traffic.device)
            self.arrived = self.desk.send(self.gather, self.live)

    def use(self) -> Tensor:
        """(n,) fp16 on the card."""
        self.bring()
        self.traffic.wait(self.arrived)
        self.arrived = None
        assert self.live is not None, "parked: nobody trains while pictures are drawn"
        return self.live.view(torch.float16)

    def leave(self) -> None:
        if self.desk is not None and self.live is not None:
            self.traffic.wait(self.arrived)  # its memory must not go to others before the copy is done
            self.arrived = self.live = None

    def park(self) -> None:
        """Give the card's memory up until `unpark`; the file has it."""
        if self.stays:
            self.live = None

    def unpark(self) -> None:
        if not self.stays:
            return
        self.live = torch.empty(self.nbytes, dtype=torch.uint8, device=self.traffic.device)
        if self.live.device.type != "meta":
            flat = torch.empty(self.n, dtype=torch.float16, device="cpu")
            self.gather(flat)
            self.live.view(torch.float16).copy_(flat)
