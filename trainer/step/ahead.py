"""How far ahead of its turn a unit is brought: always the next one, and more of them while they are small.

The largest two neighbours decide what the card must have room for anyway. Elsewhere that room holds several units, so that
the bus does not idle while a unit with few weights computes for long: it already brings the large ones that come after.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from trainer.memory.clipping import Waiting
from trainer.step.residency import Holding

DEPARTING = 3  # one byte in so many of the reach may be a departure's


class Ahead:
    """One walk over units. `waiting`: whose updates are made on the way, and so need state and gradients too.

    early: who need their state only, because the walk is a backward pass that updates them. What is on its way then may take
    `reach` bytes at the walk's end, and before it a part that grows with the units that are done: so do the activations that
    are given back.
    """

    def __init__(
        self,
        order: Sequence[int],
        holdings: Sequence[Holding],
        waiting: Waiting | None = None,
        early: Collection[int] = (),
        reach: int = 0,
    ):
        self.order, self.holdings, self.waiting, self.early, self.reach = order, holdings, waiting, early, reach
        self.sizes = [self._size(k) for k in order]
        least = [holdings[k].away(state=False) for k in order] if early else self.sizes
        self.room = max((sum(least[at : at + 2]) for at in range(len(order))), default=0)
        self.sent = 0  # units of the order that are there or on their way

    def _size(self, k: int) -> int:
        updated = self.waiting is not None and k in self.waiting.rates
        return self.holdings[k].away(state=updated or k in self.early) + (self.waiting.away(k) if updated else 0)

    def turn(self, at: int) -> None:
        """The unit at this place of the order has its turn: it comes if it has not yet, and others behind it."""
        room, leaving = self.room, 0
        if self.early:
            traffic, grown = self.holdings[self.order[at]].traffic, self.reach * at // len(self.order)
            traffic.room = grown // DEPARTING
            room, leaving = max(room, grown), traffic.leaving_bytes
        while self.sent < len(self.order):
            if self.sent > at + 1 and sum(self.sizes[at : self.sent + 1]) + leaving > room:
                return
            k = self.order[self.sent]
            if self.waiting is not None and k in self.waiting.rates:
                self.holdings[k].bring(state=True)
                self.waiting.bring(k)
            else:
                self.holdings[k].bring(state=k in self.early)
            self.sent += 1
