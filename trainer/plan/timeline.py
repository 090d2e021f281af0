"""When things happen in a step: what computes, what crosses the bus meanwhile, and who waits for whom.

A simulation of the real step writes down each copy in the order in which the host queues it, each wait, and the work between
them (`Entry`). Playing that back needs five clocks: the host, which queues; the computing stream; the two directions of the
bus; and the link to other cards, where there are some. So what a copy cannot hide behind is seen, not assumed: a step that ends
with a pass over streamed state takes that pass's whole journey, and one that makes its updates during the next forward does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

ROUNDS = 3  # steps that are played, one behind the other: from the second on they begin as steps in a run begin


@dataclass(frozen=True)
class Entry:
    """The work queued since the entry before, and what the host did then.

    up, down: a copy of `size` bytes, the `number`-th, which begins behind everything queued so far and behind copy `after`;
    link: as many bytes to another card and from one; wait: the computing stream waits for copy `number`; meet: the
    host waits for the computing stream; end: the step is queued.
    """

    kind: Literal["up", "down", "link", "wait", "meet", "end"]
    flops: int
    moved: int
    operators: int
    number: int = -1
    size: int = 0
    after: int | None = None


@dataclass(frozen=True)
class Speeds:
    """Of one card, as far as they are reached. bus: bytes a second each way; duplex: the share of it that is left where both
    ways are in use; launch: seconds of the host for one operator; kernel: seconds of the card for one, however small; link:
    bytes a second to other cards, and as many from them; through_host: over the bus, beside which nothing else crosses it;
    message: seconds that a message takes beside its bytes."""

    flops: float
    bandwidth: float
    bus: float
    duplex: float
    launch: float
    kernel: float = 0.0
    link: float = float("inf")
    through_host: bool = False
    message: float = 0.0


def seconds(entries: Sequence[Entry], speeds: Speeds) -> float:
    """How long a step in the middle of a run takes."""
    clocks: dict[str, float] = dict.fromkeys(("host", "compute", "up", "down", "link"), 0.0)
    ends = [0.0]
    for _ in range(ROUNDS):
        _play(entries, speeds, clocks)
        ends.append(clocks["compute"])
    return ends[-1] - ends[-2]


def link_bytes(entries: Sequence[Entry]) -> int:
    """What a card sends others in a step, and receives from them."""
    return sum(entry.size for entry in entries if entry.kind == "link")


def _play(entries: Sequence[Entry], speeds: Speeds, clocks: dict[str, float]) -> None:
    """Move the clocks on by one step."""
    landed: dict[int, float] = {}
    for entry in entries:
        began = max(clocks["compute"], clocks["host"])
        clocks["host"] += entry.operators * speeds.launch
        if entry.operators:
            work = entry.flops / speeds.flops + entry.moved / speeds.bandwidth + entry.operators * speeds.kernel
            clocks["compute"] = max(began + work, clocks["host"])  # no kernel runs before it is queued
        if entry.kind == "wait":
            clocks["compute"] = max(clocks["compute"], landed.get(entry.number, 0.0))
        elif entry.kind == "meet":
            clocks["host"] = max(clocks["host"], clocks["compute"])
        elif entry.kind == "link":
            ways = ("link", "up", "down") if speeds.through_host else ("link",)
            start = max(clocks["compute"], clocks["host"], *(clocks[way] for way in ways))
            landed[entry.number] = start + speeds.message + entry.size / speeds.link
            clocks |= dict.fromkeys(ways, landed[entry.number])
        elif entry.kind in ("up", "down"):
            other = "down" if entry.kind == "up" else "up"
            before = 0.0 if entry.after is None else landed.get(entry.after, 0.0)
            start = max(clocks[entry.kind], clocks["compute"], clocks["host"], before)
            share = speeds.duplex if clocks[other] > start else 1.0
            landed[entry.number] = clocks[entry.kind] = start + entry.size / (speeds.bus * share)
