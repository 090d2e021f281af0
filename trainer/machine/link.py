"""What joins two cards, measured: how fast one's memory becomes the other's, both ways at once, as ranks exchange it.

Consumer cards reach each other through host memory only (no peer to peer); torch copies that way by itself, so a copy between
two devices is the rate that counts, whatever the path is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

BYTES = 1 << 28  # large enough that a copy's start does not count


@dataclass(frozen=True)
class Measured:
    """rate: GB/s that each of two sends while it receives as much; peer: whether they reach each other's memory by themselves."""

    rate: float
    peer: bool


def between(one: torch.device, other: torch.device, size: int = BYTES, rounds: int = 5) -> Measured:
    """The fastest of some rounds."""
    here, there = (torch.zeros(size, dtype=torch.uint8, device=device) for device in (one, other))
    to_here, to_there = torch.empty_like(here), torch.empty_like(there)
    best = min(_round(here, there, to_here, to_there) for _ in range(rounds + 1))
    return Measured(size / best / 1e9, one.type == "cuda" and torch.cuda.can_device_access_peer(one, other))


def _round(here: Tensor, there: Tensor, to_here: Tensor, to_there: Tensor) -> float:
    _finish(here, there)
    began = time.perf_counter()
    to_there.copy_(here, non_blocking=True)
    to_here.copy_(there, non_blocking=True)
    _finish(here, there)
    return time.perf_counter() - began


def _finish(*tensors: Tensor) -> None:
    for tensor in tensors:
        if tensor.device.type == "cuda":
            torch.cuda.synchronize(tensor.device)
