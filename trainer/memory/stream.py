"""Streaming: optimizer state, or weights too, wait in pinned host memory and visit the card when their unit runs.

A unit's weights are one block and its state another, so a visit is one or two copies. The next unit's weights are brought
on a side stream while this unit computes; its own state, which is needed only at the end of its visit, meanwhile too;
what changed is taken back on a third, so that PCIe works in both directions beside the kernels. With `resident_units`
the largest units stay, which also shrinks the window.

Saves: 3.1 of 5.1 bytes a weight (state) or all of them (all), but for a window of about two of the largest units.
Costs: PCIe traffic of the streamed bytes each way and step, hidden where computing takes longer; as much pinned RAM.
       `all` needs checkpointing = blocks (a kept graph would hold weights that have left), and neither mode works with
       CUDA graphs (addresses change) or with optimizers other than adamw (they own their state).
Exact: yes, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer.errors import ConfigError
from trainer.machine import host


def enabled(policy) -> bool:
    return policy.stream != "off"


def check(policy, facts) -> None:
    if policy.stream == "all" and policy.checkpointing != "blocks":
        raise ConfigError(
            f"memory.stream = 'all' cannot be combined with memory.checkpointing = {policy.checkpointing!r}: "
            "kept activations would refer to weights that have left the card.",
            "Set --checkpointing blocks, or --stream state.",
        )
    if policy.optimizer != "adamw":
        raise ConfigError(
            f"memory.stream = {policy.stream!r} cannot be combined with train.optimizer = {policy.optimizer!r}, "
            "which keeps its own state.",
            "Use --optimizer adamw, or --stream off.",
        )
    if policy.cuda_graphs:
        raise ConfigError("memory.stream cannot be combined with memory.cuda_graphs: streamed weights change their address.",
                          "Set --stream off, or leave out --cuda_graphs.")  # fmt: skip


class Lane:
    """A side stream for copies in one direction. On a CPU (and in a simulation) copies happen where they are asked for."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def copy(self, target: Tensor, source: Tensor, after: torch.cuda.Event | None = None) -> torch.cuda.Event | None:
        """Queue target <- source behind everything queued so far on the computing stream, and behind `after`."""
        if self.stream is None:
            target.copy_(source)
            return None
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        if after is not None:
            self.stream.wait_event(after)
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self.stream)
        return event

    def finish(self) -> None:
        """The host waits until every copy is done."""
        if self.stream is not None:
            self.stream.synchronize()


def wait(event: torch.cuda.Event | None) -> None:
    """Let the computing stream (not the host) wait."""
    if event is not None:
        torch.cuda.current_stream().wait_event(event)


class Traffic:
    """Both directions, and the tensors that must stay alive until their copy to the host is done."""

    def __init__(self, device: torch.device):
        self.device = device
        self.up, self.down = Lane(device), Lane(device)
        self.leaving: list[tuple[Tensor, torch.cuda.Event | None]] = []

    def save(self, target: Tensor, source: Tensor) -> torch.cuda.Event | None:
        """Take `source` to the host. Its memory is reused only behind the copy, one departure later."""
        self.settle(keep=1)
        event = self.down.copy(target, source)
        self.leaving.append((source, event))  # in a simulation too, so that the plan counts it
        return event

    def settle(self, keep: int = 0) -> None:
        while len(self.leaving) > keep:
            _, event = self.leaving.pop(0)
            wait(event)

    def finish(self) -> None:
        """The host waits until no copy reads or writes host memory any more."""
        self.up.finish()
        self.down.finish()


@dataclass
class Block:
    """Bytes that move as one. `live` is the copy on the card, None while it is away; a resident block is its own home."""

    home: Tensor  # (bytes,) uint8
    resident: bool
    live: Tensor | None = None
    arrived: torch.cuda.Event | None = None
    saved: torch.cuda.Event | None = None
    traffic: Traffic | None = field(default=None, repr=False)

    @classmethod
    def make(cls, size: int, resident: bool, traffic: Traffic) -> Block:
        device = traffic.device
        home = (
            torch.empty(size, dtype=torch.uint8, device=device) if resident else host.empty(size, torch.uint8, device)
        )
        return cls(home, resident, home if resident else None, traffic=traffic)

    def bring(self) -> None:
        """Start the journey to the card; does nothing where the block is there or on its way."""
        if self.live is None:
            self.live = torch.empty_like(self.home, device=self.traffic.device)
            self.arrived = self.traffic.up.copy(self.live, self.home, after=self.saved)

    def use(self) -> Tensor:
        self.bring()
        self._land()
        return self.live

    def leave(self, changed: bool) -> None:
        """Give the card's copy up, saving it first where it has changed."""
        if self.resident or self.live is None:
            return
        self._land()  # a copy that nobody used may still be writing: its memory must not go to others before it is done
        if changed:
            self.saved = self.traffic.save(self.home, self.live)
        self.live = None

    def _land(self) -> None:
        wait(self.arrived)
        self.arrived = None

    def move(self, target: Tensor) -> None:
        """Let a resident block live in `target` from now on."""
        target.copy_(self.home)
        self.home = self.live = target

    def read(self) -> Tensor:
        """The bytes for a look (or a change) from outside a step, wherever they are, with every pending copy done."""
        if not self.resident:
            self.traffic.finish()
        return self.home
