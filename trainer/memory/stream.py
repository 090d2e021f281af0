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

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from trainer.errors import ConfigError
from trainer.machine import host
from trainer.policy import Policy

Landing = Any  # the end of a copy: a torch.cuda.Event, or a simulation's number for it


FIELDS = ("stream", "resident_units")


def enabled(policy: Policy) -> bool:
    return policy.stream != "off"


def check(policy: Policy) -> None:
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


class Clock(Protocol):
    """What follows a simulated step (plan/simulate.py): it numbers the copies, and the numbers stand for events."""

    def copied(self, way: str, size: int, after: int | None) -> int: ...

    def waited(self, number: int) -> None: ...

    def met(self) -> None: ...


class Lane:
    """A side stream for copies one way, "up" to the card or "down" to the host. On a CPU (and in a simulation) copies
    happen where they are asked for."""

    def __init__(self, device: torch.device, way: str):
        self.device, self.way = device, way
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.clock: Clock | None = None

    def copy(self, target: Tensor, source: Tensor, after: Landing | None = None) -> Landing | None:
        """Queue target <- source behind everything queued so far on the computing stream, and behind `after`."""
        if self.stream is None:
            target.copy_(source)
            return None if self.clock is None else self.clock.copied(self.way, source.nbytes, after)
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


class Traffic:
    """Both directions, and the tensors that must stay alive until their copy to the host is done."""

    def __init__(self, device: torch.device):
        self.device = device
        self.up, self.down = Lane(device, "up"), Lane(device, "down")
        self.leaving: list[tuple[Tensor, Landing | None]] = []
        self.room = 0  # bytes that may be on their way to the host; always the last departure

    @property
    def leaving_bytes(self) -> int:
        """On the card, and given up as soon as the host has them."""
        return sum(tensor.nbytes for tensor, _ in self.leaving)

    @contextmanager
    def followed(self, clock: Clock) -> Iterator[None]:
        """Inside, a simulation's copies and waits are told to `clock`."""
        self.up.clock = self.down.clock = clock
        try:
            yield
        finally:
            self.up.clock = self.down.clock = None

    def wait(self, landing: Landing | None) -> None:
        """Let the computing stream (not the host) wait for a copy."""
        if landing is None:
            return
        if self.up.clock is not None:
            self.up.clock.waited(landing)
        elif self.up.stream is not None:
            torch.cuda.current_stream(self.device).wait_event(landing)

    def meet(self) -> None:
        """A simulation's host waits here for all that is queued, as one does that reads a number."""
        if self.up.clock is not None:
            self.up.clock.met()

    def save(self, target: Tensor, source: Tensor) -> Landing | None:
        """Take `source` to the host. Its memory is reused only behind the copy, one departure later, or
        as many as there is `room` for."""
        self.settle(keep=1)
        event = self.down.copy(target, source)
        self.leaving.append((source, event))  # in a simulation too, so that the plan counts it
        return event

    def settle(self, keep: int = 0) -> None:
        """Wait for what leaves, but for the last `keep` and what there is room for beside them."""
        while len(self.leaving) > keep and (not keep or self.leaving_bytes > self.room):
            _, event = self.leaving.pop(0)
            self.wait(event)

    def finish(self) -> None:
        """The host waits until no copy reads or writes host memory any more."""
        self.up.finish()
        self.down.finish()


@dataclass
class Block:
    """Bytes that move as one. `live` is the copy on the card, None while it is away; a resident block is its own home."""

    home: Tensor  # (bytes,) uint8
    resident: bool
    traffic: Traffic = field(repr=False)
    live: Tensor | None = None
    arrived: Landing | None = None
    saved: Landing | None = None
    spare: Tensor | None = None  # host memory, as large: what may be taken back lies here or at home

    @classmethod
    def make(cls, size: int, resident: bool, traffic: Traffic) -> Block:
        device = traffic.device
        home = (
            torch.empty(size, dtype=torch.uint8, device=device) if resident else host.empty(size, torch.uint8, device)
        )
        return cls(home, resident, traffic, home if resident else None)

    def bring(self) -> Tensor:
        """Start the journey to the card; does nothing where the block is there or on its way. -> where it arrives."""
        if self.live is None:
            self.live = torch.empty_like(self.home, device=self.traffic.device)
            self.arrived = self.traffic.up.copy(self.live, self.home, after=self.saved)
        return self.live

    def use(self) -> Tensor:
        live = self.bring()
        self._land()
        return live

    def save(self, aside: bool = False) -> None:
        """Start taking what has changed home, or `aside` of it; the card's copy stays for who still reads it."""
        if not self.resident:
            assert self.live is not None, "only what is on the card can have changed there"
            self.saved = self.traffic.save(self._spare() if aside else self.home, self.live)

    def remember(self) -> None:
        """Start copying a resident block to the host, before it changes in a way that may be taken back."""
        if self.resident:
            self.saved = self.traffic.down.copy(self._spare(), self.home)

    def change(self) -> None:
        """A resident block may change after this: what it was is on the host."""
        if self.resident:
            self.traffic.wait(self.saved)
            self.saved = None

    def accept(self) -> None:
        """What was put aside is what counts from now on."""
        if not self.resident:
            self.home, self.spare = self._spare(), self.home

    def take_back(self) -> None:
        """What was put aside counts for nothing, and a resident block is what it was."""
        if self.resident:
            self.traffic.wait(self.traffic.up.copy(self.home, self._spare()))

    def lend(self, size: int) -> Tensor | None:
        """The spare bytes, where there are as many and nothing is put aside."""
        return self._spare()[:size] if size <= self.home.nbytes else None

    def _spare(self) -> Tensor:
        if self.spare is None:
            self.spare = host.empty(self.home.shape, torch.uint8, self.traffic.device)
        return self.spare

    def leave(self, changed: bool) -> None:
        """Give the card's copy up, saving it first where it has changed."""
        if self.resident or self.live is None:
            return
        self._land()  # a copy that nobody used may still be writing: its memory must not go to others before it is done
        if changed:
            self.save()
        self.live = None

    def _land(self) -> None:
        self.traffic.wait(self.arrived)
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
