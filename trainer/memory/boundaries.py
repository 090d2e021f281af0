"""Boundaries: the values between units, which wait for backward on the card or in pinned host memory.

A value is alive while some unit will still read it. With `boundaries = ram` a value that neither the unit at work nor
its neighbour in the schedule reads is taken to the host on a side stream and brought back one unit before it is read
again, in forward (a skip connection) as in backward. Values that many units read (time and text embeddings) stay.

Saves: with checkpointing = blocks all of them but a window (SD 1.5 512 px pair 250 MiB, SDXL 1024 px pair 824 MiB).
Costs: each value crosses the bus once down and at most twice up; needs checkpointing = blocks, since a kept graph holds
       its values on the card anyway; not with CUDA graphs.
Exact: yes, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from trainer.errors import ConfigError
from trainer.machine import host
from trainer.memory.stream import Landing, Traffic
from trainer.policy import Policy

EVERYWHERE = 4  # a value with so many readers stays on the card


FIELDS = ("boundaries",)


def enabled(policy: Policy) -> bool:
    return policy.boundaries == "ram"


def check(policy: Policy) -> None:
    if policy.checkpointing != "blocks":
        raise ConfigError(
            f"memory.boundaries = 'ram' has no effect with memory.checkpointing = {policy.checkpointing!r}: "
            "kept activations hold their inputs on the card.",
            "Set --checkpointing blocks, or --boundaries card.",
        )


class Values:
    """The values of one micro-batch: on the card, in host memory, or both."""

    def __init__(
        self, given: Mapping[str, Tensor], traffic: Traffic, travellers: frozenset[str], shelf: dict[str, Tensor]
    ):
        """`travellers`: names that may leave the card. `shelf`: host bytes by name, kept from step to step."""
        self.card: dict[str, Tensor] = dict(given)
        self.away: set[str] = set()
        self.stored: dict[str, Tensor] = {}  # what is away, as it lies on its shelf
        self.events: dict[str, Landing | None] = {}
        self.traffic, self.travellers, self.shelf = traffic, travellers, shelf

    def put(self, name: str, value: Tensor) -> None:
        self.card[name] = value

    def bring(self, names: Iterable[str]) -> None:
        """Start bringing values back."""
        for name in names:
            if name not in self.card and name in self.away:
                stored = self.stored[name]
                value = torch.empty_strided(
                    stored.shape, stored.stride(), dtype=stored.dtype, device=self.traffic.device
                )
                self.events[name] = self.traffic.up.copy(value, stored, after=self.events.get(name))
                self.card[name] = value

    def take(self, names: Iterable[str]) -> list[Tensor]:
        self.bring(names)
        for name in names:
            self.traffic.wait(self.events.pop(name, None))
        return [self.card[name] for name in names]

    def part(self, keep: Iterable[str]) -> None:
        """Let every traveller but `keep` leave the card; what is on the host already is just dropped."""
        for name in [n for n in self.card if n in self.travellers and n not in keep]:
            value = self._pop(name)
            if name not in self.away:
                self.events[name] = self.traffic.save(self._place(name, value), value)
                self.away.add(name)

    def drop(self, names: Iterable[str]) -> None:
        """These are not read any more."""
        for name in names:
            if name in self.card:
                self._pop(name)
            self.away.discard(name)
            self.events.pop(name, None)

    def _pop(self, name: str) -> Tensor:
        """Off the card; where it is only just arriving, its memory is free for others when it has."""
        self.traffic.wait(self.events.pop(name, None))
        return self.card.pop(name)

    def _place(self, name: str, value: Tensor) -> Tensor:
        """Where `value` waits: its own host memory, kept from step to step, in the value's shape and memory format."""
        dense = value.is_contiguous() or (value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last))
        flat = self.shelf.get(name)
        if flat is None or flat.numel() < value.nbytes:
            if flat is not None:  # the first step of a larger bucket
                self.traffic.finish()  # nobody gives up memory that a copy may still read
            flat = self.shelf[name] = host.empty(value.nbytes, torch.uint8, self.traffic.device)
        flat = flat[: value.nbytes].view(value.dtype)
        self.stored[name] = flat.as_strided(value.shape, value.stride()) if dense else flat.view(value.shape)
        return self.stored[name]
